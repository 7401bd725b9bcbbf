"""The phantom as a DICOM series, and results of it: made with pydicom alone, without any file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels
from pydicom import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from covidseg_runtime.dicom.source_series import SourceSeries
from covidseg_runtime.lung_box import Box
from covidseg_runtime.measures import measure
from covidseg_runtime.segmenter import Segmentation
from covidseg_runtime.tiling import TilePlan
from covidseg_runtime.volume import Volume

WHEN = datetime(2021, 3, 4, 5, 6, 7)
STUDY_UID, SERIES_UID, FRAME_OF_REFERENCE_UID = "1.2.3.1", "1.2.3.1.1", "1.2.3.1.9"
PATIENT_NAME, PATIENT_ID = "Muster^Anna", "PID-4711"
# LPS of the voxel (0, 0, 0); slices go upwards by the phantom's z spacing.
ORIGIN_LPS_MM = (-31.0, -17.0, -250.0)


def phantom_volume() -> Volume:
    """(X, Y, Z): i grows to the left, j to posterior, k upwards, as in an axial series."""
    z, y, x = PHANTOM_SPACING_MM
    affine = np.diag([-x, -y, z, 1.0])
    affine[:3, 3] = np.array(ORIGIN_LPS_MM) * (-1, -1, 1)
    return Volume(phantom_hu().T, affine)


def phantom_result(labels: NDArray[np.uint8] | None = None, volume: Volume | None = None) -> Segmentation:
    """The phantom's truth, or `labels` (X, Y, Z), as a segmenter would give it."""
    volume = phantom_volume() if volume is None else volume
    labels = phantom_labels().T if labels is None else labels
    x, y, z = volume.spacing_mm
    return Segmentation(
        labels=labels,
        measures=measure(np.ascontiguousarray(labels.T), np.ascontiguousarray(volume.voxels.T), (z, y, x)),
        warnings=("Slices are 6 mm apart; above 5 mm small lesions are missed.",),
        box=Box((0, 0, 0), volume.shape[::-1], "lungs"),
        tiles=1,
        plan=TilePlan(tile_shape=(16, 16, 16), step=0.5),
        quality="balanced",
        timings_s={},
    )


def report_of(segmentation: Segmentation) -> dict[str, Any]:
    """What the objects read of a report."""
    return {
        "notice": "Research use only. Not a medical device.",
        "limits": "Opacities are not specific to COVID-19 – this is no diagnosis.",
        "software": {"name": "covidseg", "version": "0.1.0"},
        "model": {"name": "tiny", "version": "1.2.3", "files": {"model.onnx": "ab" * 32, "card.md": "cd" * 32}},
        "engine": {"name": "openvino", "precision": "f32", "quality": segmentation.quality, "step": 0.5},
        "uncertainty": {"infection_volume_ml": {"low_ml": 0.5, "high_ml": 2.25, "cases": 12, "share": 0.8}},
        "warnings": list(segmentation.warnings),
    }


def phantom_series(order: Sequence[int] | None = None) -> SourceSeries:
    """Headers of single-frame CT images; ``order`` says which slice of the phantom each is."""
    shape = phantom_volume().shape
    return SourceSeries(tuple(ct_header(k) for k in (range(shape[2]) if order is None else order)))


def ct_header(k: int) -> Dataset:
    """Header of slice k, with a sheaf of what scanners write."""
    header = _common_header(CTImageStorage, f"{SERIES_UID}.{k + 1}")
    header.InstanceNumber = k + 1
    header.ImagePositionPatient = _position(k)
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing = [PHANTOM_SPACING_MM[1], PHANTOM_SPACING_MM[2]]
    header.SliceThickness = PHANTOM_SPACING_MM[0]
    return header


def multi_frame_series(frame_of_slice: Sequence[int], frames: int) -> SourceSeries:
    """One Enhanced CT whose frame ``frame_of_slice[k]`` is slice k; further frames lie elsewhere."""
    header = _common_header(EnhancedCTImageStorage, f"{SERIES_UID}.1")
    header.NumberOfFrames = frames
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [PHANTOM_SPACING_MM[1], PHANTOM_SPACING_MM[2]]
    measures.SliceThickness = PHANTOM_SPACING_MM[0]
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = [measures]
    header.SharedFunctionalGroupsSequence = [shared]
    per_frame = []
    for frame in range(frames):
        item, position = Dataset(), Dataset()
        k = frame_of_slice.index(frame) if frame in frame_of_slice else 900 + frame
        position.ImagePositionPatient = _position(k)
        item.PlanePositionSequence = [position]
        item.PlaneOrientationSequence = [orientation]
        per_frame.append(item)
    header.PerFrameFunctionalGroupsSequence = per_frame
    return SourceSeries((header,), tuple(frame_of_slice))


def _position(k: int) -> list[float]:
    x, y, z = ORIGIN_LPS_MM
    return [x, y, z + k * PHANTOM_SPACING_MM[0]]


def _common_header(sop_class_uid: str, instance_uid: str) -> Dataset:
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = sop_class_uid, instance_uid
    header.StudyInstanceUID, header.SeriesInstanceUID = STUDY_UID, SERIES_UID
    header.FrameOfReferenceUID = FRAME_OF_REFERENCE_UID
    header.PatientName, header.PatientID = PATIENT_NAME, PATIENT_ID
    header.PatientBirthDate, header.PatientSex, header.PatientAge = "19500102", "F", "071Y"
    header.StudyDate, header.StudyTime, header.StudyID, header.AccessionNumber = "20210304", "040000", "S1", "A1"
    header.ReferringPhysicianName = "Doktor^Dora"
    header.StudyDescription = "CT Thorax"
    header.Modality, header.Manufacturer, header.ManufacturerModelName = "CT", "Scanners", "Spiral 9"
    columns, rows, _ = phantom_volume().shape
    header.Rows, header.Columns = rows, columns
    return header
