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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.filereader import read_dataset, read_partial
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, EnhancedCTImageStorage

from covidseg_runtime.errors import CovidsegError, VolumeError
from covidseg_runtime.scan_kind import is_dicom_file

SINGLE_FRAME, MULTI_FRAME = str(CTImageStorage), str(EnhancedCTImageStorage)
MOST_FILES = 20_000
LARGEST_FILE = 4 << 30
LARGEST_ARCHIVE = 8 << 30
# An Enhanced CT of 2000 slices takes some 10 MiB before its pixels, a single slice some 10 kB.
LARGEST_HEADER = 64 << 20
LARGEST_HEADERS = 1 << 30
_CHUNK = 1 << 16
_META_AT = 132
_META_GROUP_LENGTH = struct.Struct("<HH2sHI")
_PIXEL_DATA = (0x7FE00010, 0x7FE00008, 0x7FE00009)
_SERIES_UID = 0x0020000E


class ByteSource(Protocol):
    """What is read from front to back."""

    def read(self, size: int, /) -> bytes:
        """The next bytes; fewer only at the end."""


@dataclass(frozen=True)
class InstanceFile:
    """Where the bytes of one instance lie.

    Attributes:
        path: The file, or the zip archive.
        archive: The archive, open; None: none.
        member: Its place in the archive.
    """

    path: Path
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None

    @property
    def name(self) -> str:
        """Its name for a message."""
        return Path(self.member.filename).name if self.member else self.path.name

    @property
    def size(self) -> int:
        """Its bytes, unpacked."""
        return self.member.file_size if self.member else self.path.stat().st_size

    @property
    def packed_size(self) -> int:
        """The bytes that it takes where it lies."""
        return self.member.compress_size if self.member else self.size

    def open(self) -> IO[bytes]:
        """A stream of it, no longer than `size`."""
        if self.archive is not None and self.member is not None:
            return self.archive.open(self.member)
        return self.path.open("rb")


@dataclass(frozen=True, eq=False)
class Instance:
    """One DICOM object.

    Attributes:
        file: Where it lies.
        header: Everything up to the pixels; of what says to be no CT, up to the UID of its series.
        transfer_syntax: UID of how it is encoded.
        pixels_at: Where the element of the pixels begins; of a deflated file, in what it unfolds to.
    """

    file: InstanceFile
    header: Dataset
    transfer_syntax: str
    pixels_at: int


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


@contextmanager
def open_instances(path: Path) -> Iterator[list[Instance]]:
    """Headers of all DICOM files of a folder (to its bottom), of a zip archive, or of one file; pixels can be read.

    Files without DICOM's mark, and directories of media (DICOMDIR), are passed over.

    Raises:
        VolumeError: If there is none, one is damaged, or limits are exceeded.
    """
    with dicom_seam(path.name):
        is_archive = path.is_file() and not is_dicom_file(path) and zipfile.is_zipfile(path)
        archive = zipfile.ZipFile(path) if is_archive else None
    with archive or nullcontext():
        yield _read_headers(path, _members(path, archive) if archive else _files(path))


def _files(path: Path) -> Iterator[InstanceFile]:
    if not path.is_dir():
        if not path.is_file():
            raise VolumeError(f"{path} is neither a folder nor a file; give those of a CT series.")
        yield InstanceFile(path)
        return
    for parent, folders, names in os.walk(path):
        folders.sort()
        found = (Path(parent, name) for name in sorted(names))
        # Opening a pipe or a device would wait for somebody.
        yield from (InstanceFile(one) for one in found if one.is_file() and is_dicom_file(one))


def _members(path: Path, archive: zipfile.ZipFile) -> Iterator[InstanceFile]:
    members = sorted((one for one in archive.infolist() if not one.is_dir()), key=lambda one: one.filename)
    if sum(one.file_size for one in members) > LARGEST_ARCHIVE:
        raise VolumeError(f"{path.name} unfolds to more than {LARGEST_ARCHIVE >> 30} GiB; give one study.")
    for one in members:
        if one.flag_bits & 1 or one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise VolumeError(f"{path.name} is encrypted or of an unusual compression; give it unpacked.")
        yield InstanceFile(path, archive, one)


def _read_headers(path: Path, files: Iterator[InstanceFile]) -> list[Instance]:
    instances: list[Instance] = []
    header_bytes = 0
    for file in files:
        found = _read_header(file)
        if found is None:
            continue
        instances.append(found)
        header_bytes += found.pixels_at
        if len(instances) > MOST_FILES or header_bytes > LARGEST_HEADERS:
            raise VolumeError(
                f"{path.name} holds more than {MOST_FILES} DICOM files, or {LARGEST_HEADERS >> 30} GiB of headers; "
                "give the folder of one study."
            )
    if not instances:
        raise VolumeError(f"{path.name} holds no DICOM file; give the folder, zip archive or file of a CT series.")
    return instances


def _read_header(file: InstanceFile) -> Instance | None:
    """Header of one instance; None if it has none of DICOM, or is a directory of media.

    Raises:
        VolumeError: If it is damaged.
    """
    with dicom_seam(file.name):
        if file.size > LARGEST_FILE:
            raise VolumeError(f"{file.name} is larger than {LARGEST_FILE >> 30} GiB; give a CT series.")
        with file.open() as stream:
            meta, start = _read_meta(stream)
            if meta is None:
                return None
            syntax = str(meta.TransferSyntaxUID)
            stream.seek(start)
            if syntax == DeflatedExplicitVRLittleEndian:
                plain = io.BytesIO(Inflating(stream).read(LARGEST_HEADER))
                header = read_dataset(plain, is_implicit_VR=False, is_little_endian=True, stop_when=_is_pixels)
                pixels_at = plain.tell()
            else:
                stream.seek(0)
                bounded = _HeaderStream(stream, file.name)
                # Contours and the like may be larger than any header, and nothing is asked of them.
                is_ct = str(meta.get("MediaStorageSOPClassUID")) in (SINGLE_FRAME, MULTI_FRAME)
                read = read_partial(cast(BinaryIO, bounded), stop_when=_is_pixels if is_ct else _is_behind_series)
                read.buffer = None  # else the file stays open
                header, pixels_at = read, stream.tell()
        if "SOPClassUID" not in header or "SeriesInstanceUID" not in header:
            return None
        return Instance(file, header, syntax, pixels_at)


def _read_meta(stream: IO[bytes]) -> tuple[FileMetaDataset | None, int]:
    """The file meta information and where it ends; None without DICOM's mark."""
    head = stream.read(_META_AT + _META_GROUP_LENGTH.size)
    if head[_META_AT - 4 : _META_AT] != b"DICM" or len(head) < _META_AT + _META_GROUP_LENGTH.size:
        return None, 0
    group, element, _, _, length = _META_GROUP_LENGTH.unpack(head[_META_AT:])
    if (group, element) != (2, 0) or length > _CHUNK:
        raise ValueError("no group length")
    start = len(head) + length
    return dcmread(io.BytesIO(head + stream.read(length))).file_meta, start


def _is_pixels(tag: int, vr: str | None, length: int) -> bool:
    return tag in _PIXEL_DATA


def _is_behind_series(tag: int, vr: str | None, length: int) -> bool:
    return tag > _SERIES_UID


class _HeaderStream(io.BufferedIOBase):
    """A file for pydicom, which reads whatever length an element has, and here no more than a header's."""

    def __init__(self, stream: IO[bytes], file_name: str) -> None:
        self._stream, self._file_name = stream, file_name

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or self._stream.tell() + size > LARGEST_HEADER:
            raise VolumeError(
                f"{self._file_name} has no pixels within its first {LARGEST_HEADER >> 20} MiB; send it again."
            )
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


class Inflating:
    """What a deflated stream unfolds to, from front to back, and no more of it than is asked for."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Begin where ``stream`` stands."""
        self._stream, self._unfolding = stream, zlib.decompressobj(-zlib.MAX_WBITS)

    def read(self, size: int, /) -> bytes:
        """The next bytes; fewer only at the end."""
        parts = []
        while size > 0 and not self._unfolding.eof:
            packed = self._unfolding.unconsumed_tail or self._stream.read(_CHUNK)
            part = self._unfolding.decompress(packed, size)
            if not packed and not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


@contextmanager
def open_at_pixels(one: Instance) -> Iterator[ByteSource]:
    """The bytes of an instance from the element of its pixels on, unfolded."""
    with one.file.open() as stream:
        if one.transfer_syntax != DeflatedExplicitVRLittleEndian:
            stream.seek(one.pixels_at)
            yield cast(ByteSource, stream)
            return
        _, start = _read_meta(stream)
        stream.seek(start)
        unfolding = Inflating(stream)
        unfolding.read(one.pixels_at)
        yield unfolding
