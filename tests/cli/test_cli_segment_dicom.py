"""`covidseg segment` on a DICOM series and on NRRD: labels as from NIfTI, objects for a PACS beside them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from click.testing import CliRunner, Result
from dicom_files import SLICES, image, series, write
from dicom_phantom import PATIENT_ID, SERIES_UID, STUDY_UID
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels

from covidseg.cli import main


@pytest.fixture
def dicom_folder(tmp_path: Path) -> Path:
    return write(tmp_path / "study" / "chest", series())


def _segment(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["segment", *map(str, arguments)])


def test_a_series_becomes_labels_and_objects(here: Path, dicom_folder: Path, tiny_bundle: Path) -> None:
    result = _segment(dicom_folder, "-ot", "nifti,dicom", "--model", tiny_bundle, "--device", "cpu")
    assert result.exit_code == 0, result.output
    labels = np.asarray(nibabel.load(here / "chest_covidseg.nii.gz").dataobj)
    assert np.array_equal(labels, phantom_labels().T)
    objects = {path.name: pydicom.dcmread(path) for path in (here / "chest_covidseg_dicom").iterdir()}
    assert sorted(objects) == ["sc.dcm", "seg.dcm", "sr.dcm"]
    assert {one.StudyInstanceUID for one in objects.values()} == {STUDY_UID}
    assert {one.PatientID for one in objects.values()} == {PATIENT_ID}
    assert objects["seg.dcm"].ReferencedSeriesSequence[0].SeriesInstanceUID == SERIES_UID
    assert "RESEARCH USE ONLY" in objects["sr.dcm"].SeriesDescription
    report = (here / "chest_covidseg.json").read_text()
    assert json.loads(report)["measures"]["infection_volume_ml"]["whole"] > 0
    assert json.loads(report)["scan"]["file"] == SERIES_UID
    for secret in (PATIENT_ID, "Muster"):
        assert secret not in report + result.output


def test_again_gives_the_same_uids_and_dicom_alone_writes_no_label_map(
    here: Path, dicom_folder: Path, tiny_bundle: Path
) -> None:
    uids = []
    for name in ("a.nii.gz", "b.nii.gz"):
        assert _segment(dicom_folder, "-o", name, "-ot", "dicom", "--model", tiny_bundle).exit_code == 0
        folder = here / name.replace(".nii.gz", "_dicom")
        uids.append([pydicom.dcmread(path).SOPInstanceUID for path in sorted(folder.iterdir())])
    assert uids[0] == uids[1]
    assert not list(here.glob("*.nii.gz"))


def test_a_segmentation_of_an_earlier_result_does_not_stay(here: Path, dicom_folder: Path, tiny_bundle: Path) -> None:
    assert _segment(dicom_folder, "-o", "a.nii.gz", "-ot", "dicom", "--model", tiny_bundle).exit_code == 0
    assert (here / "a_dicom" / "seg.dcm").is_file()
    without = ("-o", "a.nii.gz", "-ot", "dicom", "--model", tiny_bundle, "--min-lesion-ml", "100")
    assert _segment(dicom_folder, *without).exit_code == 0
    assert sorted(path.name for path in (here / "a_dicom").iterdir()) == ["sc.dcm", "sr.dcm"]


def test_objects_are_those_asked_for(here: Path, dicom_folder: Path, tiny_bundle: Path) -> None:
    wanted = ("--objects", "seg,pdf", "--lungs", "-ot", "dicom", "-o", "a.nii.gz")
    assert _segment(dicom_folder, *wanted, "--model", tiny_bundle).exit_code == 0
    objects = {path.name: pydicom.dcmread(path) for path in (here / "a_dicom").iterdir()}
    assert sorted(objects) == ["report.pdf.dcm", "seg.dcm"]
    assert len(objects["seg.dcm"].SegmentSequence) == 3


def test_the_series_can_be_named(here: Path, dicom_folder: Path, tiny_bundle: Path) -> None:
    twin = series()
    for k, one in enumerate(twin):
        one.SeriesInstanceUID, one.SOPInstanceUID = "1.2.3.5", f"1.2.3.5.{k}"
    write(dicom_folder / "twin", twin)
    result = _segment(dicom_folder, "--model", tiny_bundle)
    assert (result.exit_code, "choose one by --series UID" in result.stderr) == (3, True)
    assert _segment(dicom_folder, "--model", tiny_bundle, "--series", "1.2.3.5").exit_code == 0


def test_an_unsuitable_series_is_one_sentence_and_nothing_is_written(
    here: Path, tmp_path: Path, tiny_bundle: Path
) -> None:
    folder = write(tmp_path / "s", [image(k) for k in range(SLICES) if k != 5])
    result = _segment(folder, "-ot", "nifti,dicom", "--model", tiny_bundle)
    assert result.exit_code == 3
    assert "slices are missing" in result.stderr
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-ot", "dicom"), "is no DICOM series, which --output-type dicom needs"),
        (("--series", "1.2"), "--series and --shear-tilt are for one"),
        (("-ot", "pdf"), "any of nifti, dicom, parted by commas"),
        (("--objects", "seg,rtstruct"), "any of seg, sr, sc, pdf, parted by commas"),
    ],
)
def test_options_that_do_not_fit_the_scan(here: Path, phantom_scan: Path, arguments: tuple[str, ...], sentence) -> None:
    result = _segment(phantom_scan, *arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())


def test_a_window_is_not_for_a_series(here: Path, dicom_folder: Path) -> None:
    result = _segment(dicom_folder, "--window=-1250,250")
    assert (result.exit_code, "holds its own rescaling" in result.stderr) == (2, True)


def test_nrrd_gives_the_same_labels(here: Path, tiny_bundle: Path) -> None:
    scan = SimpleITK.GetImageFromArray(phantom_hu())
    z, y, x = PHANTOM_SPACING_MM
    scan.SetSpacing((x, y, z))
    SimpleITK.WriteImage(scan, "scan.nrrd")
    assert _segment("scan.nrrd", "--model", tiny_bundle).exit_code == 0
    assert np.array_equal(np.asarray(nibabel.load("scan_covidseg.nii.gz").dataobj), phantom_labels().T)
