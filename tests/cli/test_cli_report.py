"""`covidseg report SCAN` finds what `covidseg segment` wrote, refuses what does not belong together, writes a page."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from dicom_files import series, write
from dicom_phantom import PATIENT_ID, SERIES_UID
from phantom import HU_OF_LABEL, PHANTOM_SPACING_MM, phantom_hu, phantom_labels, spl_affine

from covidseg.cli import main


def _report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


@pytest.fixture
def segmented(here: Path, phantom_scan: Path, tiny_bundle: Path) -> Path:
    """The phantom, segmented into this folder."""
    result = CliRunner().invoke(main, ["segment", str(phantom_scan), "--model", str(tiny_bundle), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return phantom_scan


def test_the_page_is_written_beside_the_label_map(here: Path, segmented: Path) -> None:
    result = _report(segmented)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "written            phantom_covidseg.html",
        "Research use only. Not a medical device.",
    ]
    assert "MB made in" in result.stderr
    page = (here / "phantom_covidseg.html").read_bytes()
    assert page.startswith(b"<!DOCTYPE html>")
    assert b"phantom.nii.gz" in page
    assert str(here).encode() not in page
    assert str(segmented.parent).encode() not in page


def test_results_beside_the_scan_are_found_too(here: Path, segmented: Path) -> None:
    for name in ("phantom_covidseg.nii.gz", "phantom_covidseg.json"):
        shutil.move(here / name, segmented.parent / name)
    assert _report(segmented).exit_code == 0
    assert (segmented.parent / "phantom_covidseg.html").is_file()
    assert list(here.iterdir()) == []


def test_results_under_other_names_are_taken_as_given(here: Path, segmented: Path) -> None:
    (here / "phantom_covidseg.nii.gz").rename(here / "a.nii.gz")
    (here / "phantom_covidseg.json").rename(here / "b.json")
    result = _report(segmented, "--labels", "a.nii.gz", "--json-report", "b.json", "-o", "page.html")
    assert result.exit_code == 0, result.output
    assert (here / "page.html").is_file()


def test_without_results_a_sentence_names_the_command_that_makes_them(here: Path, phantom_scan: Path) -> None:
    result = _report(phantom_scan)
    assert result.exit_code == 2
    assert f"make it by `covidseg segment {phantom_scan}`, or give --labels" in result.stderr
    shutil.copy(phantom_scan, here / "phantom_covidseg.nii.gz")
    result = _report(phantom_scan)
    assert result.exit_code == 2
    assert "there is no phantom_covidseg.json" in result.stderr
    assert "give --json-report" in result.stderr


def test_labels_or_a_report_of_something_else_are_refused_and_nothing_is_written(here: Path, segmented: Path) -> None:
    labels = phantom_labels()
    labels[8, 10, 27:34] = 1
    nibabel.save(nibabel.Nifti1Image(labels, spl_affine(PHANTOM_SPACING_MM)), here / "other.nii.gz")
    result = _report(segmented, "--labels", "other.nii.gz", "--json-report", "phantom_covidseg.json")
    assert result.exit_code == 3
    assert "it is the report of another label map" in result.stderr
    nibabel.save(nibabel.Nifti1Image(labels[1:], spl_affine(PHANTOM_SPACING_MM)), here / "other.nii.gz")
    result = _report(segmented, "--labels", "other.nii.gz", "--json-report", "phantom_covidseg.json")
    assert result.exit_code == 3
    assert "they are not of one scan" in result.stderr
    assert not list(here.glob("*.html"))


def test_grey_levels_are_read_again_by_the_window_of_the_report(here: Path, tiny_bundle: Path) -> None:
    levels = np.rint((np.clip(phantom_hu(), -1250, 250) + 1250) / 1500 * 255).astype(np.uint8)
    levels += (np.arange(levels.size) % 3 == 0).astype(np.uint8).reshape(levels.shape)  # more values than a label map
    levels = levels + np.arange(levels.shape[2], dtype=np.uint8) % 8
    nibabel.save(nibabel.Nifti1Image(levels, spl_affine(PHANTOM_SPACING_MM)), here / "grey.nii.gz")
    command = ["segment", "grey.nii.gz", "--model", str(tiny_bundle), "--window=-1250,250"]
    assert CliRunner().invoke(main, command).exit_code == 0
    result = _report("grey.nii.gz")
    assert result.exit_code == 0, result.output
    page = (here / "grey_covidseg.html").read_text(encoding="utf-8")
    assert "grey levels of the window from -1250 to 250 HU" in page
    assert "--window=-1250,250" in page


def test_lobes_add_the_scores_of_five_lobes(here: Path, segmented: Path) -> None:
    lobes = np.array([0, 1, 3, 1], np.uint8)[phantom_labels()]
    lobes[:12][lobes[:12] == 1] = 2
    lobes[:12][lobes[:12] == 3] = 5
    lobes[12:14][lobes[12:14] == 3] = 4
    nibabel.save(nibabel.Nifti1Image(lobes, spl_affine(PHANTOM_SPACING_MM)), here / "lobes.nii.gz")
    assert _report(segmented, "--lobes", "lobes.nii.gz").exit_code == 0
    page = (here / "phantom_covidseg.html").read_text(encoding="utf-8")
    assert "of 25</td>" in page
    assert "not given" not in page
    result = _report(segmented, "--lobes", "phantom_covidseg.nii.gz")
    assert result.exit_code == 0, "labels 1 to 3 are lobes as far as can be told; two lobes are missing"
    assert "no voxel is labelled right middle, right lower" in (here / "phantom_covidseg.html").read_text("utf-8")


def test_a_dicom_series_is_found_in_its_folder_again(here: Path, tiny_bundle: Path) -> None:
    write(here / "series", series())
    assert CliRunner().invoke(main, ["segment", "series", "--model", str(tiny_bundle)]).exit_code == 0
    result = _report("series")
    assert result.exit_code == 0, result.output
    page = (here / "series_covidseg.html").read_text(encoding="utf-8")
    assert f"covidseg segment FOLDER --series {SERIES_UID}" in page
    assert PATIENT_ID not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prior-labels", "phantom_covidseg.nii.gz"), "--prior-labels needs --prior"),
        (("-o", "phantom_covidseg.json"), "would replace the scan or one of its results"),
        (("-o", "nowhere/page.html"), "the folder of nowhere/page.html does not exist"),
        (("-o", "."), "is a folder; a file is expected"),
        (("--parquet",), "--parquet is for a folder of results"),
    ],
)
def test_wrong_usage_is_a_sentence(here: Path, segmented: Path, arguments: tuple[str, ...], message: str) -> None:
    result = _report(segmented, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_options_of_a_scan_are_refused_for_a_folder(here: Path, segmented: Path) -> None:
    (here / "manifest.jsonl").touch()
    result = _report(here, "--labels", "phantom_covidseg.nii.gz")
    assert result.exit_code == 2
    assert "--labels is for one scan" in " ".join(result.stderr.split())


@pytest.mark.parametrize(("package", "arguments"), [("jinja2", ()), ("SimpleITK", ("--prior", "SCAN"))])
def test_a_missing_extra_is_the_line_that_installs_it(
    segmented: Path, monkeypatch: pytest.MonkeyPatch, package: str, arguments: tuple[str, ...]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("covidseg_runtime.pages.", f"{package}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    result = _report(segmented, *(str(segmented) if word == "SCAN" else word for word in arguments))
    assert result.exit_code == 2
    assert f"needs {package}, which is not installed: pip install 'covidseg[report]'" in result.stderr


def test_a_name_with_markup_and_umlauts_is_a_name(here: Path, segmented: Path) -> None:
    odd = "Müller <script>alert(1)&.nii.gz"
    shutil.copy(segmented, here / odd)
    report = json.loads((here / "phantom_covidseg.json").read_text(encoding="utf-8"))
    report["scan"]["file"] = odd
    (here / "odd.json").write_text(json.dumps(report), encoding="utf-8")
    result = _report(odd, "--labels", "phantom_covidseg.nii.gz", "--json-report", "odd.json", "-o", "odd.html")
    assert result.exit_code == 0, result.output
    page = (here / "odd.html").read_text(encoding="utf-8")
    assert "Müller &lt;script&gt;alert(1)&amp;.nii.gz" in page
    assert "<script>alert" not in page


def _segment_large_phantom(path: Path, labels: np.ndarray, bundle: Path, shift_mm: tuple[float, ...]) -> dict[str, Any]:
    """The phantom twice as large along each axis, as lungs of less than 100 mL are not compared; its measures."""
    affine = spl_affine(tuple(2 * mm for mm in PHANTOM_SPACING_MM))
    affine[:3, 3] += shift_mm
    nibabel.save(nibabel.Nifti1Image(np.array(HU_OF_LABEL, np.int16)[labels], affine), path)
    command = ["segment", str(path), "--model", str(bundle), "-o", str(path.with_name(f"{path.stem}_covidseg.nii.gz"))]
    result = CliRunner().invoke(main, [*command, "--json"])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout)["measures"])


def test_an_earlier_scan_is_compared_with(here: Path, tiny_bundle: Path) -> None:
    """The earlier one lies elsewhere in space, and has a second infection in the other lung."""
    more = phantom_labels()
    more[14:20, 12:20, 8:15] = 3
    (here / "earlier").mkdir()
    before = _segment_large_phantom(here / "earlier" / "march.nii", more, tiny_bundle, (30.0, -20.0, 400.0))
    now = _segment_large_phantom(here / "may.nii", phantom_labels(), tiny_bundle, (0.0, 0.0, 0.0))
    result = _report("may.nii", "--prior", "earlier/march.nii")
    assert result.exit_code == 0, result.output
    page = (here / "may_covidseg.html").read_text(encoding="utf-8")
    assert "<strong>march.nii</strong>; the days between the two are not known" in page
    before_ml, now_ml = (one["infection_volume_ml"]["whole"] for one in (before, now))
    assert f"<strong>1 resolved</strong>: {before_ml - now_ml:.1f} mL before" in page
    assert re.search(rf"persistent</strong>: {now_ml:.1f} mL before,\s+{now_ml:.1f} mL now \(0\.0 mL\)", page)


def test_the_results_of_the_earlier_scan_are_missed_in_a_sentence(here: Path, segmented: Path) -> None:
    shutil.copy(segmented, here / "march.nii.gz")
    result = _report(segmented, "--prior", "march.nii.gz")
    assert result.exit_code == 2
    assert "there is no march_covidseg.nii.gz" in result.stderr
    assert "give --prior-labels" in " ".join(result.stderr.split())
