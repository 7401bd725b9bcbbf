"""Stored values of the slices: read in place if they are not compressed, by a limited child process if they are."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from covidseg_runtime.dicom.instances import LARGEST_HEADER, ByteSource, Instance, dicom_seam, open_at_pixels
from covidseg_runtime.dicom.series_choice import shown_uid
from covidseg_runtime.errors import VolumeError
from covidseg_runtime.volume_extent import LARGEST_AXIS, LARGEST_VOLUME

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
COMPRESSED = (
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    RLELossless,
)
# How many bytes of pixels may unfold from one: a CT with its noise does 2 to 4, with its surroundings blanked some 20.
_LARGEST_UNFOLDING = 200
_SMALL_BYTES = 1 << 26  # what is small is read, however tightly it is packed
_CHILD = Path(__file__).with_name("decode_child.py")
# What the child takes before the first pixel, and how much more than a frame's pixels a codec may hold.
_BASE_BYTES, _TIMES_A_FRAME = 1 << 30, 16
_BASE_SECONDS, _VALUES_A_SECOND = 60, 2_000_000
_WALL_TIMES = 10  # of the processor's seconds: on a busy machine a child may wait long for its turn
# Of one child: its pixels lie in a temporary file meanwhile. A series of 300 slices of 512×512 is one batch.
_LARGEST_BATCH_BYTES = 1 << 28
_ROOM_FOR_MESSAGES = 1 << 20

Values = NDArray[np.int32]


def judge_pixels(instances: Sequence[Instance]) -> None:
    """Refuse pixels that are not those of a CT, before any is read or has its memory reserved.

    Raises:
        VolumeError: If a size is impossible, more is promised than the files can hold, or the encoding is unknown.
    """
    promised = possible = slices = 0
    for one in instances:
        with dicom_seam(one.file.name):
            frames, rows, columns = _shape(one.header)
        _judge_pixels(one, rows, columns)
        size = frames * rows * columns * 2
        if one.file.size > 2 * size + LARGEST_HEADER:
            raise VolumeError(f"{one.file.name} is larger than its {size:,} bytes of pixels explain; send it again.")
        is_plain = one.transfer_syntax in NATIVE[:-1] and one.file.member is None
        promised, slices = promised + size, slices + frames
        possible += one.file.size if is_plain else one.file.packed_size * _LARGEST_UNFOLDING
    if slices > LARGEST_AXIS or promised > 2 * LARGEST_VOLUME:
        raise VolumeError(f"The series promises {slices} slices and {promised:,} bytes of pixels, more than a CT has.")
    if promised > max(possible, _SMALL_BYTES):
        raise VolumeError(
            f"The series promises {promised:,} bytes of pixels, more than its files can hold; send it again."
        )


def _judge_pixels(one: Instance, rows: int, columns: int) -> None:
    header, name = one.header, one.file.name
    with dicom_seam(name):
        bits = int(header.BitsAllocated), int(header.BitsStored), int(header.HighBit)
        interpretation, samples = str(header.PhotometricInterpretation), int(header.get("SamplesPerPixel", 1))
        signs = int(header.PixelRepresentation)
    if not 8 <= min(rows, columns) <= max(rows, columns) <= LARGEST_AXIS:
        raise VolumeError(f"{name} promises {columns}×{rows} pixels; 8 to {LARGEST_AXIS} a side are expected.")
    if bits[0] != 16 or not 8 <= bits[1] <= 16 or bits[2] != bits[1] - 1 or signs not in (0, 1):
        raise VolumeError(f"{name} stores {bits[1]} of {bits[0]} bits up to bit {bits[2]}; 16-bit CT is expected.")
    if interpretation != "MONOCHROME2" or samples != 1:
        raise VolumeError(
            f"{name} holds {interpretation[:16]!a} with {samples} samples a pixel; MONOCHROME2 is expected."
        )
    if one.transfer_syntax not in (*NATIVE, *COMPRESSED):
        syntax = shown_uid(one.transfer_syntax)
        raise VolumeError(f"{name} has transfer syntax {syntax}, which is not read; export it uncompressed.")


def read_values(instances: Sequence[Instance]) -> Iterator[tuple[int, int, Values]]:
    """Stored values of every frame, one at a time.

    Yields:
        Index of the instance, index of the frame in it, and its (rows, columns) values.

    Raises:
        VolumeError: If pixels are damaged, or are not what the header promises.
    """
    start = 0
    while start < len(instances):
        first = instances[start]
        if first.transfer_syntax in NATIVE:
            with dicom_seam(first.file.name):
                for frame, values in enumerate(_read_native(first)):
                    yield start, frame, values
            start += 1
            continue
        batch = _batch(instances, start)
        frames = _shape(first.header)[0]
        for index, values in enumerate(_decode(batch)):
            yield start + index // frames, index % frames, values
        start += len(batch)


def _batch(instances: Sequence[Instance], start: int) -> Sequence[Instance]:
    """The instances from ``start`` on that one child can decode together."""
    first = instances[start]
    shape = _shape(first.header)
    most = max(1, _LARGEST_BATCH_BYTES // (2 * shape[0] * shape[1] * shape[2]))
    end = start + 1
    while (
        end < min(len(instances), start + most)
        and instances[end].transfer_syntax == first.transfer_syntax
        and _shape(instances[end].header) == shape
    ):
        end += 1
    return instances[start:end]


def _shape(header: Dataset) -> tuple[int, int, int]:
    return int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns)


def _read_native(one: Instance) -> Iterator[Values]:
    frames, rows, columns = _shape(one.header)
    expected = frames * rows * columns * 2
    is_big = one.transfer_syntax == ExplicitVRBigEndian
    with open_at_pixels(one) as source:
        length = _pixel_length(source, is_big=is_big)
        if not expected <= length <= expected + 1:
            raise VolumeError(
                f"{one.file.name} holds {length} bytes of pixels where {expected} are expected; send it again."
            )
        for _ in range(frames):
            content = source.read(rows * columns * 2)
            if len(content) < rows * columns * 2:
                raise VolumeError(f"{one.file.name} ends before its pixels do; send it again.")
            yield _signed(np.frombuffer(content, ">u2" if is_big else "<u2").reshape(rows, columns), one.header)


def _pixel_length(source: ByteSource, *, is_big: bool) -> int:
    """Read the head of the pixels' element; how many bytes it says to hold."""
    order = ">" if is_big else "<"
    head = source.read(8)
    if len(head) < 8 or struct.unpack(f"{order}HH", head[:4]) != (0x7FE0, 0x0010):
        return 0
    is_explicit = head[4:6] in (b"OW", b"OB")
    head = source.read(4) if is_explicit else head[4:]
    return int(struct.unpack(f"{order}I", head)[0])


def _signed(stored: NDArray[np.uint16], header: Dataset) -> Values:
    """The numbers that 16 stored bits are."""
    bits = int(header.BitsStored)
    values = stored.astype(np.int32)
    values &= (1 << bits) - 1  # what lies above belongs to no pixel
    if int(header.PixelRepresentation) == 1:
        values[values >= 1 << (bits - 1)] -= 1 << bits
    return values


def _decode(batch: Sequence[Instance]) -> Iterator[Values]:
    """All frames of the batch, in order, by one child; files of an archive are copied for it."""
    frames, rows, columns = _shape(batch[0].header)
    count, total = rows * columns, len(batch) * frames * rows * columns
    with tempfile.TemporaryDirectory(prefix="covidseg-") as folder:
        job = {
            "files": [str(_path_of(one, Path(folder, f"{index}.dcm"))) for index, one in enumerate(batch)],
            "syntax": batch[0].transfer_syntax,
            "frames": frames,
            "values": count,
            "bytes": _BASE_BYTES + _TIMES_A_FRAME * count * 2 + 2 * max(one.file.size for one in batch),
            "seconds": _BASE_SECONDS + total // _VALUES_A_SECOND,
            "output_bytes": total * 2 + _ROOM_FOR_MESSAGES,
        }
        output = Path(folder, "values")
        _run_child(job, Path(folder), output, batch[0].file.name)
        if output.stat().st_size != total * 2:
            raise VolumeError(
                f"{batch[0].file.name} and its like hold other pixels than they promise; send them again."
            )
        with output.open("rb") as stream:
            for index in range(len(batch) * frames):
                stored = np.frombuffer(stream.read(count * 2), "<u2").reshape(rows, columns)
                yield _signed(stored, batch[index // frames].header)


def _path_of(one: Instance, copy: Path) -> Path:
    """Where the child finds the file: in place, or of an archive's member, at ``copy``."""
    if one.file.member is None:
        return one.file.path.resolve()
    with dicom_seam(one.file.name), one.file.open() as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return copy


def _run_child(job: dict[str, object], folder: Path, output: Path, name: str) -> None:
    file, messages = folder / "job.json", folder / "messages"
    file.write_text(json.dumps(job), "utf-8")
    seconds = int(str(job["seconds"]))
    # One thread of each library: several would reserve address space that the limit does not have.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # -P: the modules beside the child are no libraries of anyone.
    command = [sys.executable, "-P", str(_CHILD), str(file), str(output)]
    try:
        with messages.open("wb") as stream:
            done = subprocess.run(  # noqa: S603 - our own interpreter and file
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                timeout=_WALL_TIMES * seconds,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise VolumeError(
            f"Decoding {name} and its like took more than {_WALL_TIMES * seconds} s; export it uncompressed."
        ) from error
    if done.returncode:
        last = messages.read_bytes()[-80:].decode("ascii", "replace").strip().rpartition("\n")[2]
        kind = last if done.returncode > 0 and last.isidentifier() else f"status {done.returncode}"
        raise VolumeError(
            f"The compressed pixels of {name} or its like cannot be decoded ({kind}): damaged, or not what the header "
            "promises; send them again, or export them uncompressed."
        )
