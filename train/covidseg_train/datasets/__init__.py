"""One file per data set: how it lies on disk, what its labels mean, its licence."""
