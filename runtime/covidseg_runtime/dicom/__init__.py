"""DICOM in and out: a series becomes a volume, a segmentation becomes objects that a PACS accepts. Extra ``dicom``."""
