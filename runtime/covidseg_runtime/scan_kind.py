"""What a path holds, told by names and a few bytes: no library of a format is imported for it."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

ScanKind = Literal["nifti", "dicom", "itk", "folder"]

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
# A folder of scans shows what it is early; this many files are looked at.
_FILES_LOOKED_AT = 64
_DICOM_MARK, _DICOM_MARK_AT = b"DICM", 128


def has_nifti_ending(name: str) -> bool:
    """Whether a file's name ends as NIfTI's do; capitals, as other systems write them, make no difference."""
    return name.lower().endswith(NIFTI_ENDINGS)


def is_gzip_name(name: str) -> bool:
    """Whether a file's name ends in ``.gz``, in capitals or not."""
    return name.lower().endswith(".gz")


def without_nifti_ending(name: str) -> str:
    """A file's name, or a path, without ``.nii`` or ``.nii.gz``; any other name as it is."""
    ending = next((one for one in NIFTI_ENDINGS if name.lower().endswith(one)), "")
    return name[: len(name) - len(ending)]


def scan_kind(path: Path) -> ScanKind:
    """Tell a NIfTI file, a DICOM series (folder, zip or multi-frame file), a file for SimpleITK, a folder of scans.

    A folder that holds NIfTI files anywhere is a folder of scans; one whose first files are DICOM is a series. What
    nothing speaks for is taken for NIfTI or for a folder of scans, whose readers refuse it in a sentence.
    """
    if path.is_dir():
        return _kind_of_folder(path)
    if has_nifti_ending(path.name):
        return "nifti"
    if path.name.lower().endswith(ITK_ENDINGS):
        return "itk"
    return "dicom" if is_dicom_file(path) or _is_zip_of_dicom(path) else "nifti"


def is_dicom_file(path: Path) -> bool:
    """Whether the file has DICOM's mark behind its preamble."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return file.read(_DICOM_MARK_AT + len(_DICOM_MARK))[_DICOM_MARK_AT:] == _DICOM_MARK
    except OSError:
        return False


def _kind_of_folder(folder: Path) -> ScanKind:
    found_dicom = False
    for path in _first_files(folder):
        if has_nifti_ending(path.name):
            return "folder"
        found_dicom = found_dicom or is_dicom_file(path)
    return "dicom" if found_dicom else "folder"


def _first_files(folder: Path) -> Iterator[Path]:
    left = _FILES_LOOKED_AT
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if left == 0:
                return
            left -= 1
            yield Path(parent, name)


def _is_zip_of_dicom(path: Path) -> bool:
    """Whether it is a zip archive; what is in it, the reader judges. NIfTI does not come zipped."""
    return zipfile.is_zipfile(path)
