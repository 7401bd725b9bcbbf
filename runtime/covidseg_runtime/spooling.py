"""Arrays that lie in a temporary file, so that the memory of a scan does not grow with its length.

The file has no name: it is gone when the array is, however the process ends. Its space is reserved beforehand, as a
full disk would otherwise end the process at the first write. The system reads pages in as they are touched; `planes`
gives them back as it goes, so that no more than a few slices of the array are ever part of the process.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from covidseg_runtime.errors import OutputError

__all__ = ["Spool", "every_nth", "planes", "release", "spooled_zeros", "zeros"]

_PLANES_BETWEEN = 8


@dataclass(frozen=True)
class Spool:
    """Where arrays lie that are too large for memory.

    Attributes:
        folder: A folder on disk.
        from_mib: Size from which an array lies there.
    """

    folder: Path
    from_mib: int = 160


def zeros(shape: tuple[int, ...], dtype: DTypeLike, spool: Spool | None) -> NDArray[Any]:
    """An array of zeros, in a file if it is large and there is a spool, otherwise in memory.

    Raises:
        OutputError: As of `spooled_zeros`.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if spool is None or size < spool.from_mib * 2**20:
        return np.zeros(shape, dtype)
    return spooled_zeros(shape, dtype, spool.folder)


def spooled_zeros(shape: tuple[int, ...], dtype: DTypeLike, folder: Path) -> NDArray[Any]:
    """An array of zeros in a file without a name.

    Args:
        shape: Its shape, in C order.
        dtype: Its type.
        folder: A folder on a disk with room for it.

    Raises:
        OutputError: If the folder cannot be written or is too full.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, mode="r+", shape=shape)
    except OSError as error:
        raise OutputError(
            f"{folder} has no room for {size / 2**20:.0f} MiB of working files ({error.strerror}); make room or give "
            "another folder."
        ) from error


def planes(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The planes of an array along its first axis; of a spooled one, pages are given back meanwhile."""
    for index in range(len(array)):
        yield array[index]
        if index % _PLANES_BETWEEN == _PLANES_BETWEEN - 1:
            release(array)
    release(array)


def every_nth(array: NDArray[Any], steps: tuple[int, int, int]) -> NDArray[Any]:
    """Every n-th voxel of (Z, Y, X) along each axis, as an array of its own."""
    z, y, x = steps
    sparse = array[::z]
    sampled = np.empty(sparse[:, ::y, ::x].shape, array.dtype)
    # Plane by plane: a view that is read only later would bring all pages back at once.
    for target, plane in zip(sampled, planes(sparse), strict=True):
        target[:] = plane[::y, ::x]
    return sampled


def release(array: NDArray[Any]) -> None:
    """Give back the memory of a spooled array; its values stay. Nothing happens to another array."""
    mapping = _mapping_of(array)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapping_of(array: object) -> mmap.mmap | None:
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            found: mmap.mmap | None = getattr(array, "_mmap", None)
            return found
        array = array.base
    return None
