"""What an upload is, told by its first bytes: what it is called says nothing."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

_HEAD = 1 << 14  # a gzip file may describe its code before the first byte that it holds
_GZIP, _ZIP, _DICOM = b"\x1f\x8b", b"PK\x03\x04", b"DICM"
_NIFTI_SIZES = (348, 540)
_DICOM_NAMES = ("scan.zip", "scan.dcm")


def scan_name(path: Path) -> str | None:
    """The name under which the readers know an upload; None if it is nothing that they read."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(_GZIP):
        return "scan.nii.gz" if _is_nifti(_unfolded(head)) else None
    if head.startswith(_ZIP):
        return "scan.zip"
    if head[128:132] == _DICOM:
        return "scan.dcm"
    return "scan.nii" if _is_nifti(head) else None


def is_dicom(scan: Path) -> bool:
    """Whether a file that was named by `scan_name` is read as DICOM."""
    return scan.name in _DICOM_NAMES


def _is_nifti(head: bytes) -> bool:
    """Whether a header of NIfTI-1 or NIfTI-2, of either byte order, may begin like this."""
    return len(head) >= 4 and any(struct.unpack(order + "i", head[:4])[0] in _NIFTI_SIZES for order in "<>")


def _unfolded(head: bytes) -> bytes:
    """The first four bytes that a gzip file unfolds to, as far as its first bytes tell."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 4)
    except zlib.error:
        return b""
