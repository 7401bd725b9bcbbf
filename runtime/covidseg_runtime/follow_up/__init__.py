"""Two scans of one patient: brought to one grid, lesion by lesion compared."""
