"""From DICOM to a volume: find, choose, judge, order, read; the steps in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.dicom.decoding import Values, judge_pixels, read_values
from covidseg_runtime.dicom.geometry import Slice, Stack, slice_of_image, slices_of_frames, stack_slices
from covidseg_runtime.dicom.instances import Instance, dicom_seam, open_instances
from covidseg_runtime.dicom.series_choice import choose_series, is_multi_frame, shown_uid
from covidseg_runtime.dicom.source_series import SourceSeries
from covidseg_runtime.errors import VolumeError
from covidseg_runtime.spooling import Spool, release, zeros
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_extent import judge_extent
from covidseg_runtime.volume_files import judge_hounsfield

PADDING_HU = -1024
_INT16 = np.iinfo(np.int16)
_SLICES_BETWEEN = 8


def read_series(
    path: Path, *, series_uid: str | None = None, spool: Spool | None = None, shear_tilt: bool = False
) -> tuple[Volume, SourceSeries]:
    """Read a CT series.

    Args:
        path: A folder (read to its bottom), a zip archive, or one file.
        series_uid: The series; None is the axial CT with most slices.
        spool: Where the voxels lie, in a file that has no name, if they are many.
        shear_tilt: Undo a gantry tilt: slices are shifted in their plane, with linear interpolation, until the stack is
            straight. No DICOM results can be made of such a volume.

    Returns:
        The volume: voxels[i, j, k] are HU of column i, row j of slice k, int16 where all are whole and fit in
        it, else float32; slices grow along their normal. And the series that it was read from.

    Raises:
        VolumeError: If there is no such series, or it is no straight, gapless stack of CT slices in HU.
    """
    # pydicom turns bytes into values where they are first asked for, so all of it lies within the seam.
    with dicom_seam(path.name), open_instances(path) as instances:
        return _read(choose_series(instances, series_uid), spool, shear_tilt=shear_tilt)


def _read(images: Sequence[Instance], spool: Spool | None, *, shear_tilt: bool) -> tuple[Volume, SourceSeries]:
    stack, order = _stack(images)
    judge_pixels(images)
    name = f"Series {shown_uid(images[0].header.SeriesInstanceUID)}"
    header = images[0].header
    judge_extent(stack.affine, (int(header.Columns), int(header.Rows), len(stack.slices)), name)
    if stack.tilt_degrees and not shear_tilt:
        raise VolumeError(
            f"The gantry was tilted by {stack.tilt_degrees:.1f}°, so the slices make no straight stack; --shear-tilt "
            "shifts them into one."
        )
    voxels = _read_voxels(images, stack, order, spool)
    affine = stack.affine
    if stack.tilt_degrees:
        affine = _shear(voxels, stack)
    volume = Volume(voxels.T, affine)
    judge_hounsfield(volume, name)
    frames = tuple(one.frame for one in stack.slices if one.frame is not None)
    headers = (images[0].header,) if frames else tuple(one.header for one in stack.slices)
    return volume, SourceSeries(headers, frames)


def _stack(images: Sequence[Instance]) -> tuple[Stack, dict[tuple[int, int], int]]:
    """The stack, and which slice of it each frame of each image is."""
    if any(is_multi_frame(one) for one in images) and len(images) > 1:
        raise VolumeError(f"The series holds {len(images)} multi-frame objects; give one of them as a file.")
    slices = slices_of_frames(images[0].header) if is_multi_frame(images[0]) else _single(images)
    stack = stack_slices(slices)
    places = {id(one): k for k, one in enumerate(stack.slices)}
    is_multi = slices[0].frame is not None
    order = {((0, index) if is_multi else (index, 0)): places[id(one)] for index, one in enumerate(slices)}
    return stack, order


def _single(images: Sequence[Instance]) -> list[Slice]:
    return [slice_of_image(one.header) for one in images]


def _read_voxels(
    images: Sequence[Instance], stack: Stack, order: dict[tuple[int, int], int], spool: Spool | None
) -> NDArray[Any]:
    """HU, (slices, rows, columns)."""
    header = images[0].header
    shape = (len(stack.slices), int(header.Rows), int(header.Columns))
    is_whole = all(one.slope == int(one.slope) and one.intercept == int(one.intercept) for one in stack.slices)
    voxels = zeros(shape, np.int16 if is_whole else np.float32, spool)
    for count, (index, frame, values) in enumerate(read_values(images)):
        k = order[index, frame]
        hu = _to_hounsfield(values, stack.slices[k])
        if voxels.dtype == np.int16 and not (_INT16.min <= hu.min() and hu.max() <= _INT16.max):
            voxels = voxels.astype(np.float32)
        voxels[k] = hu
        if count % _SLICES_BETWEEN == 0:
            release(voxels)
    return voxels


def _to_hounsfield(values: Values, one: Slice) -> NDArray[np.float64]:
    """HU of the stored values; padding outside the field of view is air."""
    hu = values * one.slope + one.intercept
    padding = one.header.get("PixelPaddingValue")
    if padding is not None:
        limit = one.header.get("PixelPaddingRangeLimit")
        low, high = sorted((int(padding), int(padding if limit is None else limit)))
        hu[(values >= low) & (values <= high)] = PADDING_HU
    return np.asarray(hu, np.float64)


def _shear(voxels: NDArray[Any], stack: Stack) -> NDArray[np.float64]:
    """Shift the slices in place until the stack is straight; its affine comes back."""
    from scipy import ndimage

    first = stack.slices[0]
    rise = float(stack.step_mm @ first.normal)
    drift = stack.step_mm - rise * first.normal
    columns = float(drift @ first.orientation[:3]) / first.spacing_mm[1]
    rows = float(drift @ first.orientation[3:]) / first.spacing_mm[0]
    for k in range(len(voxels)):
        moved = ndimage.shift(voxels[k].astype(np.float32), (k * rows, k * columns), order=1, cval=PADDING_HU)
        voxels[k] = np.rint(moved) if voxels.dtype == np.int16 else moved
    straight = Stack(stack.slices, rise * first.normal, 0.0)
    return straight.affine
