"""Hostile DICOM series by the seed: a sound small series, then one to three changes of the bytes of its files."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.pixels import compress
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

SLICES, SIDE = 4, 16
# Compressed series start a process each: few of them.
_SYNTAXES = (ImplicitVRLittleEndian,) * 6 + (ExplicitVRLittleEndian,) * 6 + (DeflatedExplicitVRLittleEndian,) * 3
_SYNTAXES = (*_SYNTAXES, RLELossless)
_META_ENDS_BY = 350  # what lies before is the file meta information
_LENGTHS = (0, 1, 3, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
_DIGITS = b"0123456789.-+eE\\ naninf"


@dataclass(frozen=True)
class HostileSeries:
    """Files of a folder, and what was done to them."""

    changes: tuple[str, ...]
    files: tuple[bytes, ...]

    def write(self, folder: Path) -> Path:
        """Lay the files in a folder; the folder comes back."""
        for index, content in enumerate(self.files):
            (folder / f"IM{index:04d}").write_bytes(content)
        return folder


def hostile_series(random: Random) -> HostileSeries:
    """Draw one."""
    syntax = random.choice(_SYNTAXES)
    files = [bytearray(content) for content in sound_series(syntax)]
    changes = random.choices(_CHANGES, k=random.randint(1, 3))
    for change in changes:
        # Half of the changes hit one file, half of them all alike.
        seed, chosen = random.random(), files if random.random() < 0.5 else [random.choice(files)]
        for content in chosen:
            if content:
                change(content, Random(seed))
    names = (change.__name__.lstrip("_").replace("_", " ") for change in changes)
    return HostileSeries((syntax.name, *names), tuple(bytes(content) for content in files))


@lru_cache
def sound_series(syntax: str) -> tuple[bytes, ...]:
    """A series that is read: 4 slices of 16×16, air and soft tissue."""
    return tuple(_file(k, syntax) for k in range(SLICES))


def _file(k: int, syntax: str) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"1.2.3.4.{k + 1}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.9"
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Nobody", "0", "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2 * k], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.5], 2
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.Rows = dataset.Columns = SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    values = np.random.default_rng(k).integers(900, 1200, (SIDE, SIDE)).astype("<u2")
    values[:4] = 20
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    if syntax == RLELossless:
        compress(dataset, RLELossless, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, little_endian=True, implicit_vr=syntax == ImplicitVRLittleEndian, enforce_file_format=True)
    return buffer.getvalue()


def _place(content: bytearray, random: Random) -> int:
    """Anywhere, most often behind the file meta information."""
    start = min(_META_ENDS_BY, len(content) - 1) if random.random() < 0.85 else 0
    return random.randrange(start, len(content))


def _flip_bits(content: bytearray, random: Random) -> None:
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        content[_place(content, random)] ^= 1 << random.randrange(8)


def _cut_short(content: bytearray, random: Random) -> None:
    del content[_place(content, random) :]


def _cut_out(content: bytearray, random: Random) -> None:
    start = _place(content, random)
    del content[start : start + random.choice((1, 2, 4, 8, 100))]


def _put_in(content: bytearray, random: Random) -> None:
    start = _place(content, random)
    content[start:start] = random.randbytes(random.choice((1, 2, 8, 200)))


def _repeat(content: bytearray, random: Random) -> None:
    start = _place(content, random)
    content[start:start] = content[start : start + random.choice((8, 64, 400))] * random.choice((1, 2, 50))


def _another_length(content: bytearray, random: Random) -> None:
    start = _place(content, random)
    size = struct.pack("<I", random.choice(_LENGTHS))[: random.choice((2, 4))]
    content[start : start + len(size)] = size


def _other_digits(content: bytearray, random: Random) -> None:
    """Change a number that is written in characters."""
    places = [index for index in range(_META_ENDS_BY, len(content)) if content[index] in b"0123456789"]
    for _ in range(random.choice((1, 2, 6))):
        if places:
            content[random.choice(places)] = random.choice(_DIGITS)


def _nested(content: bytearray, random: Random) -> None:
    """Sequences in sequences, thousands deep, in front of what was there."""
    start = min(_META_ENDS_BY, len(content))
    item = b"\x40\x00\x75\x02SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    content[start:start] = item * random.choice((2, 100, 3000))


_CHANGES: tuple[Callable[[bytearray, Random], None], ...] = (
    _flip_bits,
    _flip_bits,
    _cut_short,
    _cut_out,
    _put_in,
    _repeat,
    _another_length,
    _other_digits,
    _nested,
)
