"""Where the source's slices lie, and bare headers that tell highdicom nothing but that.

DICOM's coordinates are LPS: x grows to the left, y to posterior; the affine of a volume is RAS+. Headers of scanners
hold values that no standard allows. Objects are made from headers that hold only what was checked here; patient and
study are carried over afterwards, as they are (`patient_study`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.valuerep import DSfloat

from covidseg_runtime.dicom.patient_study import REQUIRED
from covidseg_runtime.dicom.source_series import SourceSeries
from covidseg_runtime.errors import VolumeError
from covidseg_runtime.volume import Volume

_LARGEST_OFFSET_MM = 0.01
_LARGEST_JITTER = 0.25  # of the distance of two slices: the reader of the series judged how even they are
_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_AS_NIFTI = "write the result as NIfTI instead"


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """Where one slice lies.

    Attributes:
        position_mm: (3,) LPS of the voxel in column 0, row 0.
        orientation: (6,) direction in LPS in which columns are counted, then that of rows.
        spacing_mm: Distance of two rows, of two columns.
    """

    position_mm: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing_mm: tuple[float, float]

    def to_ras(self, column: int, row: int) -> NDArray[np.float64]:
        """(3,) place of a voxel in RAS+ millimetres."""
        along_column, along_row = self.orientation[:3], self.orientation[3:]
        lps = self.position_mm + along_column * self.spacing_mm[1] * column + along_row * self.spacing_mm[0] * row
        return lps * (-1.0, -1.0, 1.0)


def source_frames(source: SourceSeries) -> tuple[SourceFrame, ...]:
    """Where each slice of the volume lies, in the volume's order.

    Raises:
        VolumeError: If the headers lack an identifier, the frame of reference or a slice's place.
    """
    header = source.headers[0]
    for keyword in _IDENTIFIERS:
        if not header.get(keyword):
            raise VolumeError(f"The DICOM series has no {keyword}, which its objects have to name; {_AS_NIFTI}.")
    if not header.get("FrameOfReferenceUID"):
        raise VolumeError(
            "The DICOM series has no FrameOfReferenceUID, without which no DICOM object can say where in the patient "
            f"it lies; {_AS_NIFTI}."
        )
    try:
        if source.frame_of_slice:
            return tuple(_multi_frame(header, frame) for frame in source.frame_of_slice)
        return tuple(_frame(one, one, one) for one in source.headers)
    except (AttributeError, IndexError, TypeError) as error:
        raise VolumeError(
            "The DICOM series has a slice without ImagePositionPatient, ImageOrientationPatient or PixelSpacing; "
            f"{_AS_NIFTI}."
        ) from error


def check_geometry(volume: Volume, source: SourceSeries, frames: Sequence[SourceFrame]) -> None:
    """Refuse a volume that does not lie on the source's own slices.

    Args:
        volume: voxels[i, j, k] are column i, row j of slice k.
        source: Its series.
        frames: What `source_frames` gave.

    Raises:
        VolumeError: If the size differs, or a corner of the volume lies more than 0.01 mm from where the headers say;
            between the first and the last slice, a quarter of their distance.
    """
    header = source.headers[0]
    size = (int(header.Columns), int(header.Rows), len(frames))
    if volume.shape != size:
        raise VolumeError(
            f"The volume has shape {volume.shape}, the DICOM series {size} (columns, rows, slices); DICOM objects are "
            "made for the volume that was read from the series."
        )
    last = len(frames) - 1
    for k, frame in enumerate(frames):
        allowed_mm = _LARGEST_OFFSET_MM if k in (0, last) else _LARGEST_JITTER * volume.spacing_mm[2]
        offset_mm = max(
            float(np.linalg.norm(frame.to_ras(i, j) - (volume.affine @ (i, j, k, 1))[:3]))
            for i in (0, size[0] - 1)
            for j in (0, size[1] - 1)
        )
        if not offset_mm <= max(allowed_mm, _LARGEST_OFFSET_MM):
            raise VolumeError(
                f"Slice {k} of the volume lies {offset_mm:.3g} mm from where the headers of the DICOM series put it: "
                "the volume was resampled, turned, or its gantry tilt was undone. DICOM objects have to lie on the "
                f"source's own slices; {_AS_NIFTI}."
            )


def bare_headers(source: SourceSeries, frames: Sequence[SourceFrame]) -> list[Dataset]:
    """Headers for highdicom: identifiers, size and place; patient and study are empty.

    Of a multi-frame source one, whose frames are the volume's slices in their order.
    """
    if source.frame_of_slice:
        return [_bare_multi_frame(source.headers[0], frames)]
    return [_bare_single(header, frame, frames[0]) for header, frame in zip(source.headers, frames, strict=True)]


def _frame(position: Dataset, orientation: Dataset, measures: Dataset) -> SourceFrame:
    row, column = (float(value) for value in measures.PixelSpacing)
    return SourceFrame(
        np.array([float(value) for value in position.ImagePositionPatient]),
        np.array([float(value) for value in orientation.ImageOrientationPatient]),
        (row, column),
    )


def _multi_frame(header: Dataset, frame: int) -> SourceFrame:
    """Each group of attributes stands once for all frames, or at each frame."""
    own, shared = header.PerFrameFunctionalGroupsSequence[frame], header.SharedFunctionalGroupsSequence[0]

    def group(keyword: str) -> Dataset:
        found: Dataset = (own if keyword in own else shared)[keyword].value[0]
        return found

    try:
        return _frame(group("PlanePositionSequence"), group("PlaneOrientationSequence"), group("PixelMeasuresSequence"))
    except KeyError as error:
        raise AttributeError(str(error)) from error


def _bare(header: Dataset) -> Dataset:
    bare = Dataset()
    for keyword in (*_IDENTIFIERS, "FrameOfReferenceUID"):
        setattr(bare, keyword, str(header.get(keyword, "")))
    for keyword in REQUIRED:
        setattr(bare, keyword, "")
    bare.Modality = "CT"
    bare.Rows, bare.Columns = int(header.Rows), int(header.Columns)
    bare.PositionReferenceIndicator = ""
    if header.get("LossyImageCompression") == "01":
        bare.LossyImageCompression = "01"
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if header.get(keyword):
                setattr(bare, keyword, header.get(keyword))
    return bare


def _bare_single(header: Dataset, frame: SourceFrame, first: SourceFrame) -> Dataset:
    bare = _bare(header)
    bare.ImagePositionPatient = _decimals(frame.position_mm)
    # One for all, as a segmentation has one: to 0.01 mm at the corners they are equal.
    bare.ImageOrientationPatient = _decimals(first.orientation)
    bare.PixelSpacing = _decimals(first.spacing_mm)
    bare.SliceThickness = _thickness(header)
    return bare


def _bare_multi_frame(header: Dataset, frames: Sequence[SourceFrame]) -> Dataset:
    bare, shared, orientation, measures = _bare(header), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = _decimals(frames[0].orientation)
    measures.PixelSpacing = _decimals(frames[0].spacing_mm)
    own, all_frames = header.PerFrameFunctionalGroupsSequence[0], header.SharedFunctionalGroupsSequence[0]
    group = (own if "PixelMeasuresSequence" in own else all_frames).PixelMeasuresSequence[0]
    if (thickness := _thickness(group)) is not None:
        measures.SliceThickness = thickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    bare.SharedFunctionalGroupsSequence = [shared]
    per_frame = []
    for frame in frames:
        position, item = Dataset(), Dataset()
        position.ImagePositionPatient = _decimals(frame.position_mm)
        item.PlanePositionSequence = [position]
        per_frame.append(item)
    bare.PerFrameFunctionalGroupsSequence = per_frame
    bare.NumberOfFrames = len(frames)
    return bare


def _thickness(header: Dataset) -> DSfloat | None:
    thickness = header.get("SliceThickness")
    return None if thickness in (None, "") else _decimals((float(thickness),))[0]


def _decimals(values: Sequence[float] | NDArray[np.float64]) -> list[DSfloat]:
    """Numbers as decimal strings of at most 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]
