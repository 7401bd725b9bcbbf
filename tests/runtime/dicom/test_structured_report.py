"""The structured report says our numbers, our warnings and what they do not mean, to other readers as well."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from dicom_phantom import SERIES_UID, WHEN, phantom_result, phantom_series, phantom_volume, report_of  # noqa: E402
from dicom_tools import dciodvfy_errors, run_tool  # noqa: E402
from phantom import phantom_labels  # noqa: E402
from pydicom.sr._concepts_dict import concepts  # noqa: E402
from pydicom.sr.coding import Code  # noqa: E402

from covidseg_runtime.dicom import codes  # noqa: E402
from covidseg_runtime.dicom.results import WantedObjects, make_results, write_results  # noqa: E402
from covidseg_runtime.measures import without_lungs  # noqa: E402
from covidseg_runtime.segmenter import Segmentation  # noqa: E402

WITH_SEG = WantedObjects(("seg", "sr"))


def objects_of(result: Segmentation, wanted: WantedObjects = WITH_SEG, **changes):
    report = {**report_of(result), **changes}
    return make_results(phantom_volume(), result, report, phantom_series(), wanted, when=WHEN)


def report_dataset(result: Segmentation, wanted: WantedObjects = WITH_SEG, **changes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(objects_of(result, wanted, **changes)[-1].content))


def groups_of(dataset: pydicom.Dataset) -> list[dict[str, float | str]]:
    """The measurement groups: meaning of each item -> its value."""
    found = []
    (container,) = [i for i in dataset.ContentSequence if meaning(i) == "Imaging Measurements"]
    for group in container.ContentSequence:
        values: dict[str, float | str] = {}
        for item in group.ContentSequence:
            if item.ValueType == "NUM":
                values[meaning(item)] = float(item.MeasuredValueSequence[0].NumericValue)
            elif item.ValueType in ("TEXT", "UIDREF"):
                values[meaning(item)] = item.get("TextValue") or item.get("UID")
            else:
                values[meaning(item)] = item.ValueType
        found.append(values)
    return found


def texts_of(dataset: pydicom.Dataset) -> list[tuple[str, str]]:
    (container,) = [i for i in dataset.ContentSequence if meaning(i) == "Qualitative Evaluations"]
    return [(meaning(item), item.TextValue) for item in container.ContentSequence]


def meaning(item: pydicom.Dataset) -> str:
    return item.ConceptNameCodeSequence[0].CodeMeaning


def no_infection() -> Segmentation:
    return phantom_result(np.where(phantom_labels() == 3, 1, phantom_labels()).astype(np.uint8).T)


def test_the_report_is_complete_preliminary_and_unverified() -> None:
    dataset = report_dataset(phantom_result())
    assert dataset.CompletionFlag == "COMPLETE"
    assert dataset.PreliminaryFlag == "PRELIMINARY"
    assert dataset.VerificationFlag == "UNVERIFIED"
    assert dataset.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert not any(meaning(item) == "Image Library" for item in dataset.ContentSequence)


def test_it_holds_the_measures_of_infection_and_of_each_lung() -> None:
    result = phantom_result()
    measures = result.measures
    infection, both, left, right = groups_of(report_dataset(result))
    assert infection["Volume"] == measures.infection_volume_ml.whole == pytest.approx(294 * 4.5 / 1000)
    assert infection["Percentage of infection"] == measures.infection_percent.whole
    assert infection["Attenuation Coefficient"] == -300
    assert infection["Number of lesions"] == 1
    assert infection["Number of segmented voxels"] == np.count_nonzero(phantom_labels() == 3) == 294
    assert infection["Lower end of the range of infection volume"] == 0.5
    assert infection["Upper end of the range of infection volume"] == 2.25
    assert [g["Tracking Identifier"] for g in (both, left, right)] == ["Both lungs", "Left lung", "Right lung"]
    assert [g["Volume"] for g in (both, left, right)] == [45.36, 20.16, 25.2]
    assert [g["Percentage of infection"] for g in (both, left, right)] == [2.917, 6.562, 0]


def test_it_names_the_segment_the_series_and_the_algorithm() -> None:
    segmentation, report = objects_of(phantom_result())
    dataset = pydicom.dcmread(io.BytesIO(report.content))
    infection, *_ = groups_of(dataset)
    assert infection["Referenced Segment"] == "IMAGE"
    assert infection["Source Series for Segmentation"] == SERIES_UID
    assert infection["Algorithm Name"] == "tiny"
    assert infection["Algorithm Version"] == "1.2.3"
    assert "quality balanced" in infection["Algorithm Parameters"]
    evidence = [
        instance.ReferencedSOPInstanceUID
        for study in dataset.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]
    assert len(evidence) == 29
    assert segmentation.sop_instance_uid in evidence


def test_notice_limits_range_and_warnings_are_text() -> None:
    texts = texts_of(report_dataset(phantom_result(), warnings=["First – 5 × 5", "Second"]))
    assert [name for name, _ in texts] == ["Notice", "Limits", "Comment", "Warning", "Warning"]
    said = dict(texts)
    assert said["Notice"] == "Research use only. Not a medical device."
    assert "not specific to COVID-19" in said["Limits"]
    assert "0.5 to 2.25 mL" in said["Comment"]
    assert "80 % of 12 cases" in said["Comment"]
    assert [text for name, text in texts if name == "Warning"] == ["First - 5 x 5", "Second"]


def test_without_a_range_none_is_told() -> None:
    dataset = report_dataset(phantom_result(), uncertainty={"infection_volume_ml": None})
    assert not any("range" in name for name in groups_of(dataset)[0])
    assert [name for name, _ in texts_of(dataset)] == ["Notice", "Limits", "Warning"]


def test_without_infection_the_report_says_zero_and_names_no_segment(tmp_path: Path) -> None:
    (made,) = objects_of(no_infection())
    infection, *_ = groups_of(pydicom.dcmread(io.BytesIO(made.content)))
    assert infection["Volume"] == infection["Percentage of infection"] == infection["Number of lesions"] == 0
    assert "Attenuation Coefficient" not in infection
    assert "Referenced Segment" not in infection
    (path,) = write_results(tmp_path, [made])
    assert dciodvfy_errors(path) == []


def test_a_report_alone_names_no_segmentation_that_was_never_made() -> None:
    infection, *_ = groups_of(report_dataset(phantom_result(), WantedObjects(("sr",))))
    assert "Referenced Segment" not in infection


def test_a_network_without_lungs_gives_no_percentage(tmp_path: Path) -> None:
    result = phantom_result(np.where(phantom_labels() == 3, 3, 0).astype(np.uint8).T)
    objects = objects_of(replace(result, measures=without_lungs(result.measures)))
    (infection,) = groups_of(pydicom.dcmread(io.BytesIO(objects[-1].content)))
    assert infection["Volume"] == 1.323
    assert "Percentage of infection" not in infection
    for path in write_results(tmp_path, objects):
        assert dciodvfy_errors(path) == []


def test_highdicom_reads_the_groups_again() -> None:
    made = objects_of(phantom_result())[-1]
    report = highdicom.sr.srread(io.BytesIO(made.content))
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    (volume,) = group.get_measurements(name=codes.VOLUME)
    assert (volume.value, volume.unit.value) == (1.323, "mL")
    assert len(report.content.get_image_measurement_groups()) == 3


def test_dcmqi_reads_our_numbers(tmp_path: Path) -> None:
    (path,) = write_results(tmp_path, objects_of(phantom_result())[-1:])
    out = tmp_path / "sr.json"
    run_tool("tid1500reader", "--inputDICOM", path, "--outputMetadata", out)
    infection, *lungs = json.loads(out.read_text())["Measurements"]
    values = {
        i["quantity"]["CodeValue"]: (float(i["value"]), i["units"]["CodeValue"]) for i in infection["measurementItems"]
    }
    assert values["118565006"] == (1.323, "mL")
    assert values["112031"] == (-300, "[hnsf'U]")
    assert values["PI"] == (2.917, "%")
    assert infection["ReferencedSegment"] == 1
    assert len(lungs) == 3


def test_dcmtk_prints_it(tmp_path: Path) -> None:
    (path,) = write_results(tmp_path, objects_of(phantom_result())[-1:])
    printed = run_tool("dsrdump", path)
    assert '<contains NUM:(,,"Volume")="1.323" (mL,UCUM,"milliliter")>' in printed
    assert "PRELIMINARY" in printed


def test_public_codes_are_those_of_the_dictionary_where_it_has_them() -> None:
    """pydicom's dictionary is made from the standard's own tables."""
    known = {(scheme, value): names for scheme, names in _by_value().items() for value, names in names.items()}
    for name, code in vars(codes).items():
        if not isinstance(code, Code) or code.scheme_designator == codes.PRIVATE_SCHEME:
            continue
        meanings = known.get((code.scheme_designator, code.value))
        if meanings is None:
            assert name in ("MILLILITRE", "CT_OF_CHEST", "QUALITATIVE_EVALUATIONS", "RIGHT_AND_LEFT"), name
        else:
            assert any(code.meaning.lower() in known_meaning.lower() for known_meaning in meanings), name


def _by_value() -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for scheme, names in concepts.items():
        for meanings in names.values():
            for value, (text, _) in meanings.items():
                found.setdefault(scheme, {}).setdefault(value, []).append(text)
    return found
