"""DICOM files in a folder, a zip archive, or one file: their headers, read within limits.

Nothing of an archive is written to disk under a name of its own. pydicom's errors have no common base; they are
translated here, at one seam, and nothing of a header (names, numbers of patients) gets into a message.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from covidseg_runtime.errors import CovidsegError, VolumeError
from covidseg_runtime.scan_kind import is_dicom_file

MOST_FILES = 20_000
LARGEST_FILE = 4 << 30
LARGEST_MEMBER = 1 << 30  # of a zip archive, or a deflated file, as it is read into memory
LARGEST_ARCHIVE = 8 << 30
_META_AT = 132
_META_GROUP_LENGTH = struct.Struct("<HH2sHI")
_PIXEL_DATA = (0x7FE00010, 0x7FE00008, 0x7FE00009)


@dataclass(frozen=True)
class InstanceFile:
    """Where the bytes of one instance lie.

    Attributes:
        path: The file, or the zip archive.
        member: Name in the archive; empty: none.
    """

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        """Its name for a message."""
        return Path(self.member).name if self.member else self.path.name

    def read(self) -> bytes:
        """All of it."""
        if not self.member:
            return self.path.read_bytes()
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            return _read_within(file, LARGEST_MEMBER, self.name)


@dataclass(frozen=True, eq=False)
class Instance:
    """One DICOM object.

    Attributes:
        file: Where it lies.
        header: Everything up to the pixels.
        transfer_syntax: UID of how it is encoded.
    """

    file: InstanceFile
    header: Dataset
    transfer_syntax: str


@contextmanager
def dicom_seam(name: str) -> Iterator[None]:
    """Turn whatever pydicom raises on damaged bytes into one sentence; its warnings and log lines stay inside.

    Raises:
        VolumeError: If reading ``name`` fails.
    """
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CovidsegError:
        raise
    except MemoryError as error:
        raise VolumeError(f"{name} takes more memory than is free on this machine.") from error
    except OSError as error:
        raise VolumeError(f"{name} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        raise VolumeError(
            f"{name} is no whole DICOM file ({type(error).__name__}); send or export it again."
        ) from error
    finally:
        logger.setLevel(level)


def find_instances(path: Path) -> list[Instance]:
    """Read the header of every DICOM file of a folder (to its bottom), of a zip archive, or of one file.

    Files without DICOM's mark, and directories of media (DICOMDIR), are passed over.

    Raises:
        VolumeError: If there is none, one is damaged, or limits are exceeded.
    """
    instances = [one for file in _find_files(path) if (one := read_header(file)) is not None]
    if not instances:
        raise VolumeError(f"{path.name} holds no DICOM file; give the folder, zip archive or file of a CT series.")
    return instances


def _find_files(path: Path) -> Iterator[InstanceFile]:
    files: Iterator[InstanceFile]
    if path.is_dir():
        found = (Path(parent, name) for parent, folders, names in os.walk(path) for name in sorted(names))
        files = (InstanceFile(one) for one in found if is_dicom_file(one))
    elif zipfile.is_zipfile(path):
        files = _find_members(path)
    else:
        files = iter([InstanceFile(path)])
    for count, file in enumerate(files):
        if count == MOST_FILES:
            raise VolumeError(f"{path.name} holds more than {MOST_FILES} files; give the folder of one study.")
        yield file


def _find_members(path: Path) -> Iterator[InstanceFile]:
    with dicom_seam(path.name), zipfile.ZipFile(path) as archive:
        members = sorted((one for one in archive.infolist() if not one.is_dir()), key=lambda one: one.filename)
        if sum(one.file_size for one in members) > LARGEST_ARCHIVE:
            raise VolumeError(f"{path.name} unfolds to more than {LARGEST_ARCHIVE >> 30} GiB; give one study.")
        if any(one.flag_bits & 1 for one in members):
            raise VolumeError(f"{path.name} is encrypted; give it unpacked.")
        found = []
        for one in members:
            with archive.open(one) as file:
                if file.read(_META_AT)[-4:] == b"DICM":
                    found.append(one.filename)
    return (InstanceFile(path, name) for name in found)


def read_header(file: InstanceFile) -> Instance | None:
    """Header of one instance; None if it has none of DICOM, or is a directory of media.

    Raises:
        VolumeError: If it is damaged.
    """
    with dicom_seam(file.name):
        if file.member:
            return _parse(file, io.BytesIO(file.read()))
        if file.path.stat().st_size > LARGEST_FILE:
            raise VolumeError(f"{file.name} is larger than {LARGEST_FILE >> 30} GiB; give a CT series.")
        with file.path.open("rb") as stream:
            return _parse(file, stream)


def _parse(file: InstanceFile, stream: io.BufferedIOBase) -> Instance | None:
    meta, start = _read_meta(stream)
    if meta is None:
        return None
    syntax = str(meta.TransferSyntaxUID)
    if syntax == DeflatedExplicitVRLittleEndian:
        stream.seek(start)
        plain = io.BytesIO(_inflate(stream, file.name))
        header = read_dataset(plain, is_implicit_VR=False, is_little_endian=True, stop_when=_is_pixels)
    else:
        stream.seek(0)
        header = dcmread(stream, stop_before_pixels=True)
    if "SOPClassUID" not in header or "SeriesInstanceUID" not in header:
        return None
    return Instance(file, header, syntax)


def _read_meta(stream: io.BufferedIOBase) -> tuple[FileMetaDataset | None, int]:
    """The file meta information and where it ends; None without DICOM's mark."""
    head = stream.read(_META_AT + _META_GROUP_LENGTH.size)
    if head[_META_AT - 4 : _META_AT] != b"DICM" or len(head) < _META_AT + _META_GROUP_LENGTH.size:
        return None, 0
    group, element, _, _, length = _META_GROUP_LENGTH.unpack(head[_META_AT:])
    if (group, element) != (2, 0) or length > 1 << 16:
        raise ValueError("no group length")
    start = len(head) + length
    return dcmread(io.BytesIO(head + stream.read(length))).file_meta, start


def _is_pixels(tag: int, vr: str | None, length: int) -> bool:
    return tag in _PIXEL_DATA


def _inflate(stream: io.BufferedIOBase, name: str) -> bytes:
    unfolding = zlib.decompressobj(-zlib.MAX_WBITS)
    content = unfolding.decompress(stream.read(), LARGEST_MEMBER)
    if unfolding.unconsumed_tail:
        raise VolumeError(f"{name} unfolds to more than {LARGEST_MEMBER >> 20} MiB; give a CT series.")
    return content


def inflated(file: InstanceFile) -> Dataset:
    """All of a deflated instance, pixels as well."""
    stream = io.BytesIO(file.read())
    _, start = _read_meta(stream)
    stream.seek(start)
    return read_dataset(io.BytesIO(_inflate(stream, file.name)), is_implicit_VR=False, is_little_endian=True)


def _read_within(file: IO[bytes], limit: int, name: str) -> bytes:
    content = file.read(limit + 1)
    if len(content) > limit:
        raise VolumeError(f"{name} unfolds to more than {limit >> 20} MiB; give a CT series.")
    return content
