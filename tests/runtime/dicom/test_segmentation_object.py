"""The segmentation lies where the labels lie, frame by frame, and other readers find the same voxels there."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from dicom_phantom import (  # noqa: E402
    SERIES_UID,
    WHEN,
    multi_frame_series,
    phantom_result,
    phantom_series,
    phantom_volume,
    report_of,
)
from dicom_tools import dciodvfy_errors, run_tool  # noqa: E402
from phantom import phantom_labels  # noqa: E402

from covidseg_runtime.dicom.results import ResultObject, WantedObjects, make_results, write_results  # noqa: E402
from covidseg_runtime.dicom.source_series import SourceSeries  # noqa: E402
from covidseg_runtime.volume import Volume  # noqa: E402

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
INFECTED_SLICES = range(8, 14)  # of the phantom


def segmentation_of(
    source: SourceSeries | None = None,
    labels: NDArray[np.integer] | None = None,
    volume: Volume | None = None,
    *,
    lungs: bool = False,
) -> ResultObject:
    volume = phantom_volume() if volume is None else volume
    result = phantom_result(None, volume) if labels is None else replace(phantom_result(), labels=labels)
    source = phantom_series() if source is None else source
    wanted = WantedObjects(("seg",), lung_segments=lungs)
    (made,) = make_results(volume, result, report_of(result), source, wanted, when=WHEN)
    return made


def mask_from(segment: highdicom.seg.Segmentation, number: int, grid: Volume) -> NDArray[np.bool_]:
    """A segment on the grid of a volume, each voxel put there by its place in the patient."""
    read = segment.get_volume(segment_numbers=[number], combine_segments=True, relabel=True)
    to_grid = np.linalg.inv(grid.affine) @ LPS_TO_RAS @ read.affine
    mask = np.zeros(grid.shape, bool)
    found = np.argwhere(read.array)
    indices = found @ to_grid[:3, :3].T + to_grid[:3, 3]
    assert np.abs(indices - np.rint(indices)).max() < 0.01
    mask[tuple(np.rint(indices).astype(int).T)] = True
    return mask


def read(made: ResultObject) -> highdicom.seg.Segmentation:
    return highdicom.seg.segread(io.BytesIO(made.content))


def test_the_labels_come_back_voxel_for_voxel_in_patient_space() -> None:
    segment = read(segmentation_of(lungs=True))
    labels = phantom_labels().T
    for number, label in ((1, 3), (2, 1), (3, 2)):
        assert np.array_equal(mask_from(segment, number, phantom_volume()), labels == label)


def test_by_default_there_is_one_segment_of_lung_opacity() -> None:
    segment = read(segmentation_of())
    (described,) = segment.SegmentSequence
    assert segment.SegmentationType == "BINARY"
    assert described.SegmentLabel == "Infection (lung opacity)"
    assert described.SegmentAlgorithmType == "AUTOMATIC"
    assert described.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Opacity"
    assert described.AnatomicRegionSequence[0].CodeMeaning == "Lung"
    assert "COVID" not in str(described)
    algorithm = described.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("tiny", "1.2.3")


def test_lungs_are_segments_of_their_side_and_an_absent_one_is_left_out() -> None:
    labels = np.where(phantom_labels() == 1, 0, phantom_labels()).astype(np.uint8).T
    infection, lung = read(segmentation_of(labels=labels, lungs=True)).SegmentSequence
    assert (infection.SegmentNumber, lung.SegmentNumber) == (1, 2)
    assert lung.SegmentLabel == "Right lung without infection"
    modifier = lung.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert modifier.CodeMeaning == "Right"


def test_empty_frames_are_left_out_and_each_frame_names_its_slice() -> None:
    segment = read(segmentation_of())
    named = [
        (
            frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID,
            float(frame.PlanePositionSequence[0].ImagePositionPatient[2]),
        )
        for frame in segment.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(named) == sorted((f"{SERIES_UID}.{k + 1}", -250.0 + 2 * k) for k in INFECTED_SLICES)


def test_a_series_from_the_head_to_the_feet_is_placed_as_well() -> None:
    order = range(27, -1, -1)
    upright = phantom_volume()
    affine = upright.affine.copy()
    affine[:, 3] += 27 * affine[:, 2]
    affine[:, 2] *= -1
    volume = Volume(upright.voxels[:, :, ::-1], affine)
    labels = phantom_labels().T[:, :, ::-1]
    segment = read(segmentation_of(phantom_series(order), labels, volume))
    assert np.array_equal(mask_from(segment, 1, upright), phantom_labels().T == 3)
    assert np.array_equal(mask_from(segment, 1, volume), labels == 3)


def test_frames_of_a_multi_frame_source_are_named_by_their_own_number() -> None:
    """Frames lie out of order, and some are none of the volume's."""
    frame_of_slice = [40 - k for k in range(28)]
    frame_of_slice[8], frame_of_slice[13] = frame_of_slice[13], frame_of_slice[8]
    source = multi_frame_series(frame_of_slice, 41)
    segment = read(segmentation_of(source))
    named = []
    for frame in segment.PerFrameFunctionalGroupsSequence:
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID == f"{SERIES_UID}.1"
        named.append((int(image.ReferencedFrameNumber), float(frame.PlanePositionSequence[0].ImagePositionPatient[2])))
    assert sorted(named) == sorted((frame_of_slice[k] + 1, -250.0 + 2 * k) for k in INFECTED_SLICES)
    assert np.array_equal(mask_from(segment, 1, phantom_volume()), phantom_labels().T == 3)


def test_objects_of_a_multi_frame_source_are_valid(tmp_path: Path) -> None:
    result = phantom_result()
    source = multi_frame_series(range(28), 28)
    wanted = WantedObjects(("seg", "sr", "sc", "pdf"))
    made = make_results(phantom_volume(), result, report_of(result), source, wanted, when=WHEN)
    for path in write_results(tmp_path, made):
        assert dciodvfy_errors(path) == [], path.name


def test_an_oblique_series_keeps_its_orientation() -> None:
    turn = np.deg2rad(20)
    rotation = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    upright, source = phantom_volume(), phantom_series()
    for header in source.headers:
        header.ImageOrientationPatient = [float(f"{v:.10f}") for v in (rotation @ np.eye(3)[:, :2]).T.ravel()]
        place = rotation @ np.array([float(v) for v in header.ImagePositionPatient])
        header.ImagePositionPatient = [float(f"{v:.8f}") for v in place]
    turned = np.eye(4)
    turned[:3, :3] = rotation
    volume = Volume(upright.voxels, LPS_TO_RAS @ turned @ LPS_TO_RAS @ upright.affine)
    segment = read(segmentation_of(source, volume=volume))
    assert np.array_equal(mask_from(segment, 1, volume), phantom_labels().T == 3)


def test_labels_of_another_type_are_taken_as_well() -> None:
    wide = segmentation_of(labels=phantom_labels().T.astype(np.int64))
    assert wide.content == segmentation_of(labels=phantom_labels().T).content


def test_lossy_compression_of_the_source_is_told() -> None:
    source = phantom_series()
    for header in source.headers:
        header.LossyImageCompression, header.LossyImageCompressionRatio = "01", "10"
        header.LossyImageCompressionMethod = "ISO_10918_1"
    dataset = read(segmentation_of(source))
    assert (dataset.LossyImageCompression, dataset.LossyImageCompressionRatio) == ("01", 10)


def test_a_series_of_a_single_infected_slice_is_valid(tmp_path: Path) -> None:
    labels = np.zeros_like(phantom_labels().T)
    labels[10, 10, 10] = 3
    made = segmentation_of(labels=labels)
    assert read(made).NumberOfFrames == 1
    assert np.array_equal(mask_from(read(made), 1, phantom_volume()), labels == 3)
    (path,) = write_results(tmp_path, [made])
    assert dciodvfy_errors(path) == []


def test_dcmqi_finds_our_voxels_in_our_place(tmp_path: Path) -> None:
    (path,) = write_results(tmp_path, [segmentation_of(lungs=True)])
    run_tool("segimage2itkimage", "--inputDICOM", path, "--outputDirectory", tmp_path, "--prefix", "q", "-t", "nii")
    grid, labels = phantom_volume(), phantom_labels().T
    for number, label in ((1, 3), (2, 1), (3, 2)):
        image = nibabel.load(tmp_path / f"q-{number}.nii.gz")
        found = np.argwhere(np.asanyarray(image.dataobj))
        assert len(found) == np.count_nonzero(labels == label)
        to_grid = np.linalg.inv(grid.affine) @ image.affine
        indices = found @ to_grid[:3, :3].T + to_grid[:3, 3]
        assert np.allclose(indices, np.rint(indices), atol=1e-3)
        assert np.all(labels[tuple(np.rint(indices).astype(int).T)] == label)
        assert np.allclose(image.affine[:3, :3], grid.affine[:3, :3])
