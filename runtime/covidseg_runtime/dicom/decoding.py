"""Stored values of the slices: read in place if they are not compressed, by a limited child process if they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
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

from covidseg_runtime.dicom.instances import Instance, dicom_seam, inflated
from covidseg_runtime.dicom.series_choice import shown_uid
from covidseg_runtime.errors import VolumeError

LARGEST_SIDE = 4096
LARGEST_VOXELS = 1 << 31
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
_CHILD = Path(__file__).with_name("decode_child.py")
# What the child takes before the first pixel, and how much more than the pixels themselves a codec may hold.
_BASE_BYTES, _TIMES_THE_PIXELS = 1 << 30, 16
_BASE_SECONDS, _VOXELS_A_SECOND = 60, 2_000_000
_LARGEST_BATCH = 64

Values = NDArray[np.int32]


def judge_pixels(instances: Sequence[Instance], slices: int) -> None:
    """Refuse pixels that are not those of a CT, before any is read.

    Raises:
        VolumeError: If a size is impossible, or the encoding is unknown.
    """
    for one in instances:
        header, name = one.header, one.file.name
        with dicom_seam(name):
            rows, columns = int(header.Rows), int(header.Columns)
            bits = int(header.BitsAllocated), int(header.BitsStored), int(header.HighBit)
            interpretation, samples = str(header.PhotometricInterpretation), int(header.get("SamplesPerPixel", 1))
        if not 8 <= min(rows, columns) <= max(rows, columns) <= LARGEST_SIDE:
            raise VolumeError(f"{name} promises {columns}×{rows} pixels; 8 to {LARGEST_SIDE} a side are expected.")
        if slices * rows * columns > LARGEST_VOXELS:
            raise VolumeError(f"The series promises {slices} slices of {columns}×{rows}, more than a CT has.")
        if bits[0] != 16 or not 8 <= bits[1] <= 16 or bits[2] != bits[1] - 1:
            raise VolumeError(f"{name} stores {bits[1]} of {bits[0]} bits up to bit {bits[2]}; 16-bit CT is expected.")
        if interpretation != "MONOCHROME2" or samples != 1:
            raise VolumeError(
                f"{name} holds {interpretation[:16]!a} with {samples} samples a pixel; MONOCHROME2 is expected."
            )
        if one.transfer_syntax not in (*NATIVE, *COMPRESSED):
            syntax = shown_uid(one.transfer_syntax)
            raise VolumeError(f"{name} has transfer syntax {syntax}, which is not read; export it uncompressed.")


def read_values(instances: Sequence[Instance]) -> Iterator[Values]:
    """Stored values of each instance, (frames, rows, columns) int32, in the order given.

    Raises:
        VolumeError: If pixels are damaged, or are not what the header promises.
    """
    batch: list[Instance] = []
    for one in instances:
        is_compressed = one.transfer_syntax in COMPRESSED
        if batch and (not is_compressed or len(batch) == _LARGEST_BATCH or not _go_together(batch[0], one)):
            yield from _decode(batch)
            batch = []
        if is_compressed:
            batch.append(one)
        else:
            with dicom_seam(one.file.name):
                values = _read_native(one)
            yield values
    if batch:
        yield from _decode(batch)


def _go_together(first: Instance, other: Instance) -> bool:
    return first.transfer_syntax == other.transfer_syntax and _shape(first.header) == _shape(other.header)


def _shape(header: Dataset) -> tuple[int, int, int]:
    return int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns)


def _read_native(one: Instance) -> Values:
    if one.transfer_syntax == DeflatedExplicitVRLittleEndian:
        dataset = inflated(one.file)
    elif one.file.member:
        import io

        dataset = dcmread(io.BytesIO(one.file.read()))
    else:
        dataset = dcmread(one.file.path)
    shape, header = _shape(one.header), one.header
    content = dataset.PixelData
    count = shape[0] * shape[1] * shape[2]
    if not count * 2 <= len(content) <= count * 2 + 1:
        raise VolumeError(
            f"{one.file.name} holds {len(content)} bytes of pixels where {count * 2} are expected; send it again."
        )
    order = ">u2" if one.transfer_syntax == ExplicitVRBigEndian else "<u2"
    stored = np.frombuffer(content, order, count).astype(np.int32).reshape(shape)
    bits = int(header.BitsStored)
    stored &= (1 << bits) - 1  # what lies above belongs to no pixel
    if int(header.PixelRepresentation) == 1:
        stored = np.where(stored >= 1 << (bits - 1), stored - (1 << bits), stored).astype(np.int32)
    return stored


def _decode(batch: Sequence[Instance]) -> Iterator[Values]:
    """The batch in one child; its files are copied where they lie in an archive."""
    shape = _shape(batch[0].header)
    count = shape[0] * shape[1] * shape[2]
    with tempfile.TemporaryDirectory(prefix="covidseg-") as folder:
        files = []
        for index, one in enumerate(batch):
            path = one.file.path
            if one.file.member:
                path = Path(folder, f"{index}.dcm")
                with dicom_seam(one.file.name):
                    path.write_bytes(one.file.read())
            files.append(str(path.resolve()))
        output = Path(folder, "values")
        job = {
            "files": files,
            "syntax": batch[0].transfer_syntax,
            "values": count,
            "bytes": _BASE_BYTES + _TIMES_THE_PIXELS * count * 2,
            "seconds": _BASE_SECONDS + len(batch) * count // _VOXELS_A_SECOND,
        }
        _run_child(job, Path(folder, "job.json"), output, batch[0].file.name)
        values = np.fromfile(output, "<i4")
    if values.size != count * len(batch):
        raise VolumeError(f"{batch[0].file.name} and its like hold other pixels than they promise; send them again.")
    yield from values.reshape((len(batch), *shape))


def _run_child(job: dict[str, object], file: Path, output: Path, name: str) -> None:
    file.write_text(json.dumps(job), "utf-8")
    seconds = int(str(job["seconds"]))
    # One thread of each library: several would reserve address space that the limit does not have.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(_CHILD), str(file), str(output)]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and file
            command, env=environment, capture_output=True, timeout=2 * seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise VolumeError(f"Decoding {name} and its like took more than {2 * seconds} s; export it again.") from error
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        kind = last.partition(":")[0] if done.returncode > 0 else f"signal {-done.returncode}"
        raise VolumeError(
            f"The compressed pixels of {name} or its like cannot be decoded ({kind}): damaged, or not what the header "
            "promises; send them again, or export them uncompressed."
        )
