"""Objects belong to the source's patient and study, are the same every time, and refuse what they cannot place."""

from __future__ import annotations

import io
import logging
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from dicom_phantom import (  # noqa: E402
    FRAME_OF_REFERENCE_UID,
    PATIENT_ID,
    PATIENT_NAME,
    SERIES_UID,
    STUDY_UID,
    WHEN,
    ct_header,
    phantom_result,
    phantom_series,
    phantom_volume,
    report_of,
)
from dicom_tools import dciodvfy_errors, run_tool  # noqa: E402
from phantom import phantom_labels  # noqa: E402

from covidseg_runtime import Segmenter, build_report, describe_scan  # noqa: E402
from covidseg_runtime.dicom.results import ResultObject, WantedObjects, make_results, write_results  # noqa: E402
from covidseg_runtime.dicom.source_series import SourceSeries  # noqa: E402
from covidseg_runtime.errors import OutputError, SettingsError, VolumeError  # noqa: E402
from covidseg_runtime.volume import Volume  # noqa: E402

ALL = WantedObjects(("seg", "sr", "sc", "pdf"))
TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
TYPE_2 += ("AccessionNumber", "ReferringPhysicianName")


def results_of(source: SourceSeries | None = None, wanted: WantedObjects = ALL, **changes) -> tuple[ResultObject, ...]:
    """Objects of the phantom; ``changes`` replace volume, segmentation, report or when."""
    segmentation = changes.get("segmentation") or phantom_result()
    return make_results(
        changes.get("volume") or phantom_volume(),
        segmentation,
        changes.get("report") or report_of(segmentation),
        phantom_series() if source is None else source,
        wanted,
        when=changes.get("when", WHEN),
    )


def dataset_of(result: ResultObject) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(result.content))


def as_read(header: pydicom.Dataset, *, implicit: bool = True) -> pydicom.Dataset:
    """The header as a file gives it, its elements not yet decoded."""
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


def test_each_object_is_a_new_series_of_the_patients_study() -> None:
    results = results_of()
    datasets = [dataset_of(result) for result in results]
    assert [result.kind for result in results] == ["seg", "sr", "sc", "pdf"]
    assert [d.SeriesNumber for d in datasets] == [901, 902, 903, 904]
    assert [d.Modality for d in datasets] == ["SEG", "SR", "OT", "DOC"]
    assert {d.StudyInstanceUID for d in datasets} == {STUDY_UID}
    series = {d.SeriesInstanceUID for d in datasets}
    assert len(series) == 4
    assert SERIES_UID not in series
    assert len({d.SOPInstanceUID for d in datasets}) == 4
    source = ct_header(0)
    for dataset, result in zip(datasets, results, strict=True):
        assert (dataset.SOPClassUID, dataset.SOPInstanceUID) == (result.sop_class_uid, result.sop_instance_uid)
        for keyword in (*TYPE_2, "PatientAge", "StudyDescription"):
            assert dataset[keyword].value == source[keyword].value, keyword
        assert len(dataset.SeriesDescription) <= 64
        assert "RESEARCH USE ONLY" in dataset.SeriesDescription
        assert dataset.ContentDate == dataset.InstanceCreationDate == dataset.SeriesDate == "20210304"
        assert dataset.ContentTime == dataset.InstanceCreationTime == dataset.SeriesTime == "050607"
    assert datasets[0].FrameOfReferenceUID == FRAME_OF_REFERENCE_UID


def test_objects_name_the_model_and_the_scanner_as_equipment() -> None:
    for dataset in map(dataset_of, results_of()):
        assert (dataset.Manufacturer, dataset.ManufacturerModelName) == ("covidseg", "tiny")
        assert list(dataset.SoftwareVersions) == ["covidseg 0.1.0", "model 1.2.3"]
        scanner, model = dataset.ContributingEquipmentSequence
        assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
        assert (scanner.Manufacturer, scanner.ManufacturerModelName) == ("Scanners", "Spiral 9")
        assert model.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert model.DeviceUID.startswith("2.25.")
        assert len(model.DeviceSerialNumber) == 64


def test_equal_input_gives_equal_bytes_and_another_time_the_same_uids() -> None:
    first, again = results_of(), results_of()
    assert first == again
    later = results_of(when=WHEN + timedelta(days=1, microseconds=5))
    assert [r.sop_instance_uid for r in later] == [r.sop_instance_uid for r in first]
    assert all(a.content != b.content for a, b in zip(first, later, strict=True))


def test_without_a_time_objects_are_of_now() -> None:
    (result,) = results_of(wanted=WantedObjects(("sr",)), when=None)
    assert dataset_of(result).ContentDate >= "20250101"


def test_another_model_or_version_makes_other_series() -> None:
    report = report_of(phantom_result())
    series = {dataset_of(r).SeriesInstanceUID for r in results_of()}
    for part, change in (
        ("model", {"files": {"model.onnx": "ef" * 32}}),
        ("software", {"version": "9.9.9"}),
    ):
        changed = {**report, part: {**report[part], **change}}
        assert series.isdisjoint(dataset_of(r).SeriesInstanceUID for r in results_of(report=changed))


def test_another_result_of_one_model_is_another_instance_of_the_same_series() -> None:
    labels = phantom_labels().T.copy()
    labels[27, 10, 8] = 1
    first = results_of()
    other = results_of(segmentation=phantom_result(labels))
    for one, two in zip(map(dataset_of, first), map(dataset_of, other), strict=True):
        assert one.SeriesInstanceUID == two.SeriesInstanceUID
        assert one.SOPInstanceUID != two.SOPInstanceUID


def test_one_uid_never_stands_for_two_contents_of_a_result() -> None:
    with_lungs = results_of(wanted=WantedObjects(("seg", "sr"), lung_segments=True))
    alone = results_of(wanted=WantedObjects(("sr",)))
    uids = {r.sop_instance_uid for r in (*results_of(wanted=WantedObjects(("seg", "sr"))), *with_lungs, *alone)}
    assert len(uids) == 5


def test_the_given_headers_are_not_changed() -> None:
    source = phantom_series()
    del source.headers[0].PatientBirthDate
    before = deepcopy(source.headers)
    results_of(source)
    assert source.headers == before


def test_what_type_2_the_source_lacks_is_empty() -> None:
    source = phantom_series()
    for header in source.headers:
        for keyword in (*TYPE_2, "Manufacturer", "SliceThickness"):
            del header[keyword]
    for dataset in map(dataset_of, results_of(source)):
        assert all(keyword in dataset and not dataset[keyword].value for keyword in TYPE_2)
        assert len(dataset.ContributingEquipmentSequence) == 1


@pytest.mark.parametrize("implicit", [True, False])
def test_patient_and_study_arrive_as_the_source_encoded_them(implicit, caplog) -> None:
    """No value that libraries dislike raises, warns or is logged, and none is mended."""
    caplog.set_level(logging.INFO)
    header = ct_header(0)
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientName = "Müller"
    header = as_read(header, implicit=implicit)
    sex = pydicom.dataelem.RawDataElement(pydicom.tag.Tag("PatientSex"), "CS", 8, b"weiblich", 0, implicit, True)
    birth = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag("PatientBirthDate"), "DA", 9, b"2.1.1950?", 0, implicit, True
    )
    header._dict[sex.tag], header._dict[birth.tag] = sex, birth
    source = SourceSeries((header, *phantom_series().headers[1:]))
    for result in results_of(source):
        assert "Müller".encode() in result.content
        assert b"weiblich" in result.content
        assert b"2.1.1950? " in result.content
        assert dataset_of(result).PatientName == "Müller"
    assert "Müller" not in caplog.text


def test_sequences_of_the_patient_are_carried_over() -> None:
    header = ct_header(0)
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "113100", "DCM", "Basic"
    header.PatientIdentityRemoved, header.DeidentificationMethodCodeSequence = "YES", [item]
    header = as_read(header)
    for dataset in map(dataset_of, results_of(SourceSeries((header, *phantom_series().headers[1:])))):
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"


def test_without_infection_there_is_no_segmentation() -> None:
    labels = np.where(phantom_labels() == 3, 1, phantom_labels()).astype(np.uint8).T
    results = results_of(segmentation=phantom_result(labels), wanted=replace(ALL, lung_segments=True))
    assert [result.kind for result in results] == ["sr", "sc", "pdf"]


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "SOPInstanceUID"])
def test_a_series_without_frame_of_reference_or_identifier_is_refused(keyword) -> None:
    source = phantom_series()
    del source.headers[0][keyword]
    with pytest.raises(VolumeError, match=f"has no {keyword}.*NIfTI") as refused:
        results_of(source)
    assert not any(secret in str(refused.value) for secret in (PATIENT_NAME, PATIENT_ID, "Muster", "1950"))


def test_a_slice_without_a_place_is_refused() -> None:
    source = phantom_series()
    del source.headers[3].ImagePositionPatient
    with pytest.raises(VolumeError, match="without ImagePositionPatient"):
        results_of(source)


def test_a_volume_that_no_longer_lies_on_the_slices_is_refused() -> None:
    """Tilt undone: the last slice moved to the front, the first where it was."""
    volume = phantom_volume()
    sheared = volume.affine.copy()
    sheared[1, 2] += 0.3
    with pytest.raises(VolumeError, match=r"Slice 2 of the volume lies 0\.6 mm .* tilt was undone.*NIfTI"):
        results_of(volume=Volume(volume.voxels, sheared))
    flipped = volume.affine @ np.diag([1, 1, -1, 1])
    with pytest.raises(VolumeError, match="own slices"):
        results_of(volume=Volume(volume.voxels, flipped))


@pytest.mark.parametrize(("offset_mm", "is_accepted"), [(0.009, True), (0.02, False)])
def test_the_affine_has_to_agree_to_a_hundredth_of_a_millimetre(offset_mm, is_accepted) -> None:
    volume = phantom_volume()
    moved = volume.affine.copy()
    moved[0, 3] += offset_mm
    arguments = {"volume": Volume(volume.voxels, moved), "wanted": WantedObjects(("sr",))}
    if is_accepted:
        assert results_of(**arguments)
    else:
        with pytest.raises(VolumeError, match=r"lies 0\.02 mm"):
            results_of(**arguments)


def test_slices_between_may_jitter_and_keep_their_own_place() -> None:
    source = phantom_series()
    source.headers[10].ImagePositionPatient = [-31, -17, -250 + 20.2]
    segmentation = dataset_of(results_of(source, WantedObjects(("seg",)))[0])
    places = [
        float(f.PlanePositionSequence[0].ImagePositionPatient[2]) for f in segmentation.PerFrameFunctionalGroupsSequence
    ]
    assert -229.8 in places
    source.headers[10].ImagePositionPatient = [-31, -17, -250 + 21]
    with pytest.raises(VolumeError, match="Slice 10"):
        results_of(source)


def test_labels_and_series_of_another_size_are_refused() -> None:
    volume = phantom_volume()
    with pytest.raises(VolumeError, match=r"labels have shape \(44, 36, 27\), the scan \(44, 36, 28\)"):
        results_of(segmentation=replace(phantom_result(), labels=phantom_labels().T[:, :, 1:]))
    with pytest.raises(VolumeError, match=r"shape \(44, 36, 28\), the DICOM series \(44, 36, 27\)"):
        results_of(phantom_series(range(27)), volume=volume)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"\['rtstruct'\].*seg, sr, sc, pdf"):
        WantedObjects(("rtstruct",))
    with pytest.raises(SettingsError, match="at least one"):
        WantedObjects(())


def test_files_are_written_under_their_names_and_replace_older_ones(tmp_path: Path) -> None:
    results = results_of()
    (tmp_path / "sr.dcm").write_bytes(b"old")
    paths = write_results(tmp_path, results)
    assert [path.name for path in paths] == ["seg.dcm", "sr.dcm", "sc.dcm", "report.pdf.dcm"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert [path.read_bytes() for path in paths] == [result.content for result in results]
    with pytest.raises(OutputError, match="cannot be written"):
        write_results(tmp_path / "missing", results)


def test_no_validator_finds_an_error_in_any_object(tmp_path: Path) -> None:
    for path in write_results(tmp_path, results_of(wanted=replace(ALL, lung_segments=True))):
        assert dciodvfy_errors(path) == [], path.name


def test_the_objects_agree_with_each_other_on_patient_and_study(tmp_path: Path) -> None:
    paths = write_results(tmp_path, results_of())
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{path}\n" for path in paths))
    assert "Error" not in run_tool("dcentvfy", "-f", listed)


def test_a_true_segmenters_result_becomes_objects(tiny_bundle: Path, tmp_path: Path) -> None:
    volume = phantom_volume()
    with Segmenter.open(str(tiny_bundle), device="cpu") as segmenter:
        segmentation = segmenter.segment(volume)
        report = build_report(segmentation, segmenter.bundle, segmenter.engine, describe_scan("series", volume))
    results = make_results(volume, segmentation, report, phantom_series(), ALL, when=WHEN)
    assert [result.kind for result in results] == ["seg", "sr", "sc", "pdf"]
    for path in write_results(tmp_path, results):
        assert dciodvfy_errors(path) == []
