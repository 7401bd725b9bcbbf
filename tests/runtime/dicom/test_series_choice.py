"""Which series is chosen of several, and which of its images are slices."""

import pytest
from dicom_files import SLICES, enhanced, image, save, series, write
from pydicom import Dataset, Sequence
from pydicom.uid import RTStructureSetStorage

from covidseg_runtime.dicom.read_series import read_series
from covidseg_runtime.dicom.series_choice import list_series
from covidseg_runtime.errors import VolumeError


def as_series(images, uid, kind):
    """The images as another series of that ImageType."""
    for k, one in enumerate(images):
        one.SeriesInstanceUID, one.SOPInstanceUID, one.ImageType = uid, f"{uid}.{k}", kind
    return images


def test_original_slices_go_before_derived_ones(tmp_path):
    derived = as_series(series(), "1.2.3.5", ["DERIVED", "PRIMARY", "AXIAL"])
    folder = write(tmp_path / "s", [*series(range(SLICES - 2)), *derived])
    assert read_series(folder)[0].shape[2] == SLICES - 2
    assert read_series(folder, series_uid="1.2.3.5")[0].shape[2] == SLICES
    assert read_series(write(tmp_path / "derived", derived))[0].shape[2] == SLICES


def test_of_several_studies_none_is_chosen_by_its_length(tmp_path):
    """A folder of patients, or of a patient's earlier scan too."""
    other = as_series(series(range(SLICES - 2)), "1.2.3.5", ["ORIGINAL", "PRIMARY", "AXIAL"])
    for one in other:
        one.StudyInstanceUID = "1.2.3.77"
    folder = write(tmp_path / "s", [*series(), *other])
    with pytest.raises(VolumeError, match="come from 2 studies: .* choose one series by --series UID"):
        read_series(folder)
    assert read_series(folder, series_uid="1.2.3.5")[0].shape[2] == SLICES - 2


@pytest.mark.parametrize("kind", ["CT_SOM5 MIP", "MIN IP", "MINIP", "MAX_IP"])
def test_projections_are_no_slices(tmp_path, kind):
    folder = write(tmp_path / "s", as_series(series(), "1.2.3.5", ["DERIVED", "SECONDARY", "AXIAL", kind]))
    with pytest.raises(VolumeError, match="projections, whose values are no HU"):
        read_series(folder)


@pytest.mark.parametrize("kind", ["SCREEN SAVE", "DOSE_INFO", "CT_SOM5 PROT", "OTHER"])
def test_a_screen_filed_among_the_slices_is_passed_over(tmp_path, kind):
    screen = image(0)
    screen.SOPInstanceUID, screen.ImageType = "1.2.3.88", ["DERIVED", "SECONDARY", kind]
    del screen["ImagePositionPatient"]
    assert read_series(write(tmp_path / "s", [*series(), screen]))[0].shape[2] == SLICES


def test_the_arrival_of_a_contrast_is_no_volume(tmp_path):
    arrival = as_series([image(3) for _ in range(SLICES + 9)], "1.2.3.5", ["ORIGINAL", "PRIMARY", "AXIAL"])
    folder = write(tmp_path / "s", [*series(), *arrival])
    assert read_series(folder)[0].shape[2] == SLICES
    assert list_series(folder)[0].problem == "its slices lie at 1 places, as of a contrast's arrival"


def test_slices_that_share_an_instance_uid_are_refused(tmp_path):
    images = series()
    images[-1].SOPInstanceUID = images[0].SOPInstanceUID
    with pytest.raises(VolumeError, match="different slices have one SOPInstanceUID"):
        read_series(write(tmp_path / "s", images))


def test_a_coronal_multi_frame_object_is_not_axial(tmp_path):
    coronal = enhanced(range(SLICES))
    shared = coronal.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    for k, frame in enumerate(coronal.PerFrameFunctionalGroupsSequence):
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 2 * k, 0]
    with pytest.raises(VolumeError, match="not axial"):
        read_series(save(coronal, tmp_path / "IM0001"))


def test_contours_beside_the_series_are_listed_and_not_read(tmp_path, monkeypatch):
    contours, item = image(0), Dataset()
    contours.SOPClassUID, contours.SOPInstanceUID = RTStructureSetStorage, "1.2.3.7"
    contours.SeriesInstanceUID, contours.Modality = "1.2.3.6", "RTSTRUCT"
    item.ROIName = "Lung"
    contours.StructureSetROISequence = Sequence([item] * 9000)
    monkeypatch.setattr("covidseg_runtime.dicom.instances.LARGEST_HEADER", 100_000)  # the contours take more
    folder = write(tmp_path / "s", [*series(), contours])
    assert read_series(folder)[0].shape[2] == SLICES
    assert [(one.modality, one.images, one.problem) for one in list_series(folder)] == [
        ("CT", SLICES, None),
        ("RTSTRUCT", 0, "modality RTSTRUCT, no CT images"),
    ]
