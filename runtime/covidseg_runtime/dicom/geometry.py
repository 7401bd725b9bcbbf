"""Slices in order, and whether they are one straight, gapless stack.

DICOM's coordinates are LPS millimetres. The stack grows along the normal of the slices, the cross product of the
direction in which columns are counted and that of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from covidseg_runtime.dicom.instances import dicom_seam
from covidseg_runtime.errors import VolumeError

_UNEVEN_SHARE, _UNEVEN_MM = 0.01, 0.02  # of a gap; headers round positions to hundredths
_SAME_PLACE_MM = 0.01
_ORIENTATION_TOLERANCE = 1e-3
_STRAIGHT_DEGREES = 0.1
_ALONG_THE_LINE_MM = 0.5
_FARTHEST_MM = 10_000.0
_NAMED = 5

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice, as its header says.

    Attributes:
        header: Of the image, or of the multi-frame object.
        frame: Index of the frame in a multi-frame object; None for a single-frame image.
        position_mm: (3,) LPS of the centre of the voxel in column 0, row 0.
        orientation: (6,) direction in which columns are counted, then that of rows.
        spacing_mm: Distance of two rows, of two columns.
        slope: Stored value to HU.
        intercept: Likewise.
    """

    header: Dataset
    frame: int | None
    position_mm: Vector
    orientation: Vector
    spacing_mm: tuple[float, float]
    slope: float
    intercept: float

    @property
    def normal(self) -> Vector:
        """(3,) unit vector."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return np.asarray(normal / np.linalg.norm(normal), np.float64)


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order, evenly spaced.

    Attributes:
        slices: Along the normal.
        step_mm: (3,) LPS from one slice to the next.
        tilt_degrees: Angle between that step and the normal; 0 if they are one.
    """

    slices: tuple[Slice, ...]
    step_mm: Vector
    tilt_degrees: float

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4): column, row and slice to RAS+ millimetres."""
        first = self.slices[0]
        lps = np.eye(4)
        lps[:3, 0] = first.orientation[:3] * first.spacing_mm[1]
        lps[:3, 1] = first.orientation[3:] * first.spacing_mm[0]
        lps[:3, 2], lps[:3, 3] = self.step_mm, first.position_mm
        return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, np.float64)


def slice_of_image(header: Dataset) -> Slice:
    """The one slice of a CT image.

    Raises:
        VolumeError: If the header does not say where it lies.
    """
    with _place_seam():
        return _slice(header, None, header, header, header, header)


def slices_of_frames(header: Dataset) -> list[Slice]:
    """The slices of an Enhanced CT, in the order of its frames.

    Raises:
        VolumeError: If the header does not say where they lie.
    """
    with _place_seam():
        shared = header.SharedFunctionalGroupsSequence[0]
        own = header.PerFrameFunctionalGroupsSequence
        if len(own) != int(header.NumberOfFrames):
            raise VolumeError(f"NumberOfFrames is {header.NumberOfFrames}, but {len(own)} frames are described.")

        def group(frame: Dataset, keyword: str) -> Dataset:
            found: Dataset = (frame if keyword in frame else shared)[keyword].value[0]
            return found

        return [
            _slice(
                header,
                index,
                group(frame, "PlanePositionSequence"),
                group(frame, "PlaneOrientationSequence"),
                group(frame, "PixelMeasuresSequence"),
                group(frame, "PixelValueTransformationSequence"),
            )
            for index, frame in enumerate(own)
        ]


def _slice(
    header: Dataset, frame: int | None, position: Dataset, orientation: Dataset, measures: Dataset, rescale: Dataset
) -> Slice:
    row, column = (float(value) for value in measures.PixelSpacing)
    found = Slice(
        header=header,
        frame=frame,
        position_mm=_numbers(position.ImagePositionPatient, 3),
        orientation=_numbers(orientation.ImageOrientationPatient, 6),
        spacing_mm=(row, column),
        slope=float(rescale.RescaleSlope),
        intercept=float(rescale.RescaleIntercept),
    )
    lengths = np.linalg.norm(found.orientation.reshape(2, 3), axis=1)
    is_sound = (
        np.allclose(lengths, 1.0, atol=_ORIENTATION_TOLERANCE)
        and abs(float(found.orientation[:3] @ found.orientation[3:])) < _ORIENTATION_TOLERANCE
        and np.abs(found.position_mm).max() < _FARTHEST_MM
        and 0.01 < min(row, column) <= max(row, column) < 100.0
        and all(math.isfinite(value) for value in (found.slope, found.intercept))
        and found.slope != 0.0
    )
    if not is_sound:
        raise VolumeError("A slice has an impossible position, orientation, spacing or rescaling; export it again.")
    return found


@contextmanager
def _place_seam() -> Iterator[None]:
    try:
        with dicom_seam("A slice's header"):
            yield
    except VolumeError as error:
        if not isinstance(error.__cause__, AttributeError | KeyError | TypeError | IndexError):
            raise
        raise VolumeError(
            "A slice does not say where it lies: ImagePositionPatient, ImageOrientationPatient, PixelSpacing, "
            "RescaleSlope and RescaleIntercept are expected; export the series again."
        ) from error


def _numbers(values: Sequence[float], count: int) -> Vector:
    numbers = np.array([float(value) for value in values])
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{count} numbers are expected")
    return numbers


def stack_slices(slices: Sequence[Slice]) -> Stack:
    """Order the slices along their normal and judge them.

    Raises:
        VolumeError: If they differ in orientation, size or spacing, share a place, or leave a gap.
    """
    _require_one_grid(slices)
    normal = slices[0].normal
    ordered = sorted(slices, key=lambda one: float(one.position_mm @ normal))
    places = np.array([float(one.position_mm @ normal) for one in ordered])
    _require_even_gaps(places)
    positions = np.array([one.position_mm for one in ordered])
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    line = positions[0] + np.arange(len(ordered))[:, None] * step
    across = (positions - line) - np.outer((positions - line) @ normal, normal)
    if np.linalg.norm(across, axis=1).max() > _ALONG_THE_LINE_MM:
        raise VolumeError("The slices are shifted against each other, not along one line; give a series as acquired.")
    cosine = min(1.0, float(step @ normal) / float(np.linalg.norm(step)))
    tilt = math.degrees(math.acos(cosine))
    return Stack(tuple(ordered), step, tilt if tilt > _STRAIGHT_DEGREES else 0.0)


def _require_one_grid(slices: Sequence[Slice]) -> None:
    first = slices[0]
    for one in slices:
        if not np.allclose(one.orientation, first.orientation, atol=_ORIENTATION_TOLERANCE):
            raise VolumeError("The slices have several orientations; give a series of one, by --series UID.")
        sizes = [(int(each.header.Rows), int(each.header.Columns)) for each in (first, one)]
        if sizes[0] != sizes[1]:
            raise VolumeError(f"The slices have several sizes ({sizes[0]} and {sizes[1]}); give a series of one size.")
        if not np.allclose(one.spacing_mm, first.spacing_mm, rtol=1e-4):
            raise VolumeError(
                f"The slices have several pixel spacings ({first.spacing_mm} and {one.spacing_mm} mm); give a series "
                "of one."
            )


def _require_even_gaps(places: NDArray[np.float64]) -> None:
    """Refuse slices at one place, missing ones and uneven gaps; places in mm along the normal, in order."""
    gaps = np.diff(places)
    if (gaps < _SAME_PLACE_MM).any():
        raise VolumeError(
            f"Different slices lie at one place ({_at(places, gaps < _SAME_PLACE_MM)}): several scans or phases in one "
            "series; give one of them."
        )
    usual = float(np.median(gaps))
    uneven = np.abs(gaps - usual) > max(_UNEVEN_SHARE * usual, _UNEVEN_MM)
    if not uneven.any():
        return
    times = gaps[uneven] / usual
    if (np.abs(times - np.rint(times)) * usual <= max(_UNEVEN_SHARE * usual, _UNEVEN_MM)).all():
        missing = int((np.rint(times) - 1).sum())
        raise VolumeError(
            f"Of the series, slices are missing: {missing} after {_at(places, uneven)}, where one lies every "
            f"{usual:g} mm; send the whole series."
        )
    raise VolumeError(
        f"The slices are unevenly spaced: {gaps.min():g} to {gaps.max():g} mm, after {_at(places, uneven)}; give a "
        "series of one spacing."
    )


def _at(places: NDArray[np.float64], chosen: NDArray[np.bool_]) -> str:
    found = [f"{place:.2f}" for place in places[:-1][chosen][:_NAMED]]
    more = int(chosen.sum()) - len(found)
    return f"{', '.join(found)} mm" + (f" and {more} more" if more else "")
