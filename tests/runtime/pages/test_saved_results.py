"""Results that were written earlier are those of the scan, or refused in a sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from phantom import phantom_labels
from scan_results import phantom_report, phantom_volume

from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.errors import VolumeError
from covidseg_runtime.pages.saved_results import judge_report, read_labels, read_report, tell_altered
from covidseg_runtime.pages.scan_page import render_scan_page
from covidseg_runtime.volume import Volume, to_orientation


@pytest.fixture
def content(tiny_bundle: Path) -> dict[str, Any]:
    """The report on the phantom."""
    return phantom_report(load_bundle(tiny_bundle))


def _written(folder: Path, content: object) -> Path:
    path = folder / "ct_covidseg.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _label_file(folder: Path, labels: np.ndarray, affine: np.ndarray) -> Path:
    path = folder / "ct_covidseg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


def test_the_report_of_the_scan_and_its_labels_is_taken(tmp_path: Path, content: dict[str, Any]) -> None:
    report = read_report(_written(tmp_path, content))
    assert report.content == content
    assert report.window_hu is None
    judge_report(report, phantom_volume())
    assert tell_altered(report, phantom_volume(), phantom_labels()) == content


def test_the_window_of_grey_levels_comes_back(tmp_path: Path, content: dict[str, Any]) -> None:
    content["scan"]["window_hu"] = [-1250, 250]
    assert read_report(_written(tmp_path, content)).window_hu == (-1250.0, 250.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no report of `covidseg segment`: it lacks software, model"),
        ('{"scan": {}}', "it lacks software, model, engine, measures"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(VolumeError, match=message):
        read_report(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff\xfe\x00\x00")
    with pytest.raises(VolumeError, match="is no JSON"):
        read_report(path)
    with pytest.raises(VolumeError, match="cannot be read"):
        read_report(tmp_path / "missing.json")


def test_a_later_schema_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    content["schema_version"] = 2
    with pytest.raises(VolumeError, match="has schema version 2, this covidseg knows 1"):
        read_report(_written(tmp_path, content))


@pytest.mark.parametrize(
    ("section", "damage", "message"),
    [
        ("measures", {"lung_volume_ml": None}, "lung_volume_ml of measures of the report is null, a section"),
        ("measures", {"lesion_count": "3"}, "lesion_count of measures of the report is '3', a whole number"),
        ("measures", {"lung_volume_ml": {"whole": 1.0}}, "left of lung_volume_ml of measures of the report is missing"),
        ("scan", {"spacing_mm": [1.0, 1.0]}, "is a list of 2, a list of 3 is expected"),
        ("scan", {"spacing_mm": 1.0}, "is 1.0, a list is expected"),
        ("scan", {"window_hu": [0, True]}, "a value of window_hu of scan of the report is True, a number is expected"),
        ("model", {"files": ["model.onnx"]}, "is a list of 1, a section is expected"),
        ("uncertainty", {"infection_volume_ml": {}}, "low_ml of infection_volume_ml of uncertainty"),
    ],
)
def test_a_damaged_report_is_refused_with_the_place(
    tmp_path: Path, content: dict[str, Any], section: str, damage: dict[str, Any], message: str
) -> None:
    content[section].update(damage)
    with pytest.raises(VolumeError, match=rf"ct_covidseg\.json is damaged: .*{re.escape(message)}.*; segment again"):
        read_report(_written(tmp_path, content))


def test_whatever_is_taken_out_of_a_report_it_is_refused_or_makes_a_page(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    refused = 0
    for section in [key for key, value in content.items() if isinstance(value, dict)]:
        for key in content[section]:
            for damaged in (
                {name: value for name, value in content[section].items() if name != key},
                {**content[section], key: {"another": "kind"}},
            ):
                try:
                    report = read_report(_written(tmp_path, {**content, section: damaged}))
                except VolumeError:
                    refused += 1
                else:
                    render_scan_page(phantom_volume(), phantom_labels(), report.content)
    assert refused > 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scan": {"shape": [28, 36, 45]}}, "is of a scan of shape"),
        ({"scan": {"spacing_mm": [2.0, 1.5, 1.6]}}, "with voxels of"),
    ],
)
def test_the_report_of_something_else_is_refused(
    tmp_path: Path, content: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    for section, values in change.items():
        content[section].update(values)
    with pytest.raises(VolumeError, match=message):
        judge_report(read_report(_written(tmp_path, content)), phantom_volume())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"infection_volume_ml": {"whole": 1.327}}, "holds 1.32 mL of infection, its report says 1.33 mL"),
        ({"lung_volume_ml": {"whole": 45.0}}, "mL of lung, its report says 45.00 mL"),
    ],
)
def test_a_report_on_other_labels_is_told_in_its_first_warning(
    tmp_path: Path, content: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    for name, sides in change.items():
        content["measures"][name].update(sides)
    content["warnings"] = ["another"]
    told = tell_altered(read_report(_written(tmp_path, content)), phantom_volume(), phantom_labels())
    first, last = told["warnings"]
    assert message in first
    assert last == "another"


def test_where_no_lungs_are_labelled_only_infection_is_held_against_the_report(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    content["measures"]["lung_volume_ml"] = {"whole": None, "left": None, "right": None}
    report = read_report(_written(tmp_path, content))
    assert tell_altered(report, phantom_volume(), phantom_labels())["warnings"] == content["warnings"]


def test_labels_come_in_the_order_of_the_scan(tmp_path: Path) -> None:
    scan = phantom_volume()
    turned = to_orientation(Volume(phantom_labels(), scan.affine), "LPS")
    labels = read_labels(_label_file(tmp_path, turned.voxels, turned.affine), scan)
    np.testing.assert_array_equal(labels, phantom_labels())


@pytest.mark.parametrize(
    ("labels", "shift_mm", "message"),
    [
        (phantom_labels()[1:], 0.0, "label map ct_covidseg.nii.gz has shape"),
        (phantom_labels(), 5.0, r"lie up to 5\.00 mm apart"),
        (phantom_labels() + np.uint8(2), 0.0, r"holds labels \[4, 5\]"),
    ],
)
def test_labels_of_another_grid_or_kind_are_refused(
    tmp_path: Path, labels: np.ndarray, shift_mm: float, message: str
) -> None:
    scan = phantom_volume()
    affine = scan.affine.copy()
    affine[0, 3] += shift_mm
    with pytest.raises(VolumeError, match=message):
        read_labels(_label_file(tmp_path, labels, affine), scan)
