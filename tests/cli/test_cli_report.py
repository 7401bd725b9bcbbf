"""`covidseg report SCAN`, on what `covidseg segment` wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from dicom_files import series, write
from dicom_phantom import SERIES_UID
from phantom import PHANTOM_SPACING_MM, phantom_hu, spl_affine

from covidseg.cli import main

DEMO_SCAN = Path(__file__).parents[1] / "data" / "demo" / "coronacases_002_ct.nii.gz"


def _report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


@pytest.fixture
def segmented(here: Path, phantom_scan: Path, tiny_bundle: Path) -> Path:
    """A phantom, which is drawn, segmented by a tiny network with its default names; the working folder."""
    shutil.copy(phantom_scan, here / "scan.nii.gz")
    result = CliRunner().invoke(main, ["segment", "scan.nii.gz", "--model", str(tiny_bundle), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return here


def _page(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_page_lies_beside_the_label_map_and_holds_the_numbers_of_the_report(segmented: Path) -> None:
    result = _report("scan.nii.gz")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "written            scan_covidseg.html",
        "Research use only. Not a medical device.",
    ]
    measured = json.loads((segmented / "scan_covidseg.json").read_text())["measures"]
    page = _page(segmented / "scan_covidseg.html")
    assert f"{measured['infection_volume_ml']['whole']:.1f} mL" in page
    assert f"{measured['infection_percent']['left']:.1f} %" in page


def test_results_beside_the_scan_are_found_from_elsewhere(
    segmented: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = _report(segmented / "scan.nii.gz")
    assert result.exit_code == 0, result.output
    assert (segmented / "scan_covidseg.html").is_file()
    assert not list(Path().iterdir())


def test_files_of_other_names_are_given(segmented: Path) -> None:
    (segmented / "scan_covidseg.nii.gz").rename("a.nii.gz")
    (segmented / "scan_covidseg.json").rename("b.json")
    result = _report("scan.nii.gz", "--labels", "a.nii.gz", "--json-report", "b.json", "-o", "page.html")
    assert result.exit_code == 0, result.output
    assert (segmented / "page.html").is_file()


def test_a_scan_that_was_not_segmented_is_told_how(here: Path, phantom_scan: Path) -> None:
    result = _report(phantom_scan)
    assert result.exit_code == 2
    assert f"make them: covidseg segment {phantom_scan}" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scans", "."), "--scans is for RESULTS"),
        (("--parquet",), "--parquet is for RESULTS"),
        (("--prior-labels", "scan_covidseg.nii.gz"), "--prior-labels goes with --prior"),
        (("--comparison", "c.json"), "--comparison goes with --prior"),
        (("-o", "page.pdf"), "must end in .html"),
        (("-o", "nowhere/page.html"), "does not exist"),
    ],
)
def test_options_that_do_not_fit_are_refused(segmented: Path, options: tuple[str, ...], message: str) -> None:
    result = _report("scan.nii.gz", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(segmented.glob("*.html"))


def test_options_of_one_scan_are_refused_for_a_folder_of_results(here: Path, tiny_bundle: Path) -> None:
    (here / "manifest.jsonl").write_text("")
    result = _report(".", "--date", "2020-03-01")
    assert result.exit_code == 2
    assert "--date is for one scan" in result.stderr


def test_what_does_not_belong_together_is_refused(segmented: Path) -> None:
    scan = nibabel.load("scan.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(np.asanyarray(scan.dataobj), scan.affine @ np.diag([1, 1, 1.5, 1])), "other.nii.gz"
    )
    shutil.copy("scan_covidseg.nii.gz", "other_covidseg.nii.gz")
    shutil.copy("scan_covidseg.json", "other_covidseg.json")
    result = _report("other.nii.gz")
    assert result.exit_code == 3
    assert "they are not of one scan" in result.stderr
    assert not list(segmented.glob("*.html"))


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"schema_version": 1}', '{"scan": {}}'])
def test_a_file_that_is_no_report_is_refused(segmented: Path, content: str) -> None:
    (segmented / "scan_covidseg.json").write_text(content)
    result = _report("scan.nii.gz")
    assert result.exit_code == 3
    assert "report of `covidseg segment`" in result.stderr


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("scan", 3, "is no report of `covidseg segment`"),
        ("scan", {}, "is damaged: file of scan of the report is missing; segment again"),
        ("measures", [], "is no report of `covidseg segment`"),
        ("warnings", "none", "is no report of `covidseg segment`"),
    ],
)
def test_a_report_with_a_section_that_is_none_is_refused(
    segmented: Path, section: str, value: object, message: str
) -> None:
    path = segmented / "scan_covidseg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), section: value}))
    result = _report("scan.nii.gz")
    assert result.exit_code == 3
    assert message in result.stderr


def test_a_report_of_a_later_version_is_refused(segmented: Path) -> None:
    path = segmented / "scan_covidseg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    result = _report("scan.nii.gz")
    assert result.exit_code == 3
    assert "schema version 99" in result.stderr


def test_a_corrected_label_map_is_shown_with_a_warning(segmented: Path) -> None:
    labels = nibabel.load("scan_covidseg.nii.gz")
    corrected = np.asarray(labels.dataobj).copy()
    assert (corrected == 3).any()
    corrected[corrected == 3] = 1
    nibabel.save(nibabel.Nifti1Image(corrected, labels.affine, labels.header), "scan_covidseg.nii.gz")
    assert _report("scan.nii.gz").exit_code == 0
    assert "The label map holds 0.00 mL of infection, its report says" in _page(segmented / "scan_covidseg.html")


def test_lobes_of_another_tool_give_the_scores_that_need_them(segmented: Path) -> None:
    labels = nibabel.load("scan_covidseg.nii.gz")
    sides = np.asarray(labels.dataobj)
    lobes = np.zeros_like(sides)
    upper = np.zeros(sides.shape, bool)
    upper[sides.shape[0] // 2 :] = True  # the phantom's first axis points to the head
    lobes[(sides == 1) & upper], lobes[(sides == 1) & ~upper] = 1, 2
    lobes[(sides == 2) & upper], lobes[(sides == 2) & ~upper] = 3, 5
    nibabel.save(nibabel.Nifti1Image(lobes, labels.affine), "lobes.nii.gz")
    assert _report("scan.nii.gz", "--lobes", "lobes.nii.gz").exit_code == 0
    assert "no voxel is labelled right middle" in _page(segmented / "scan_covidseg.html")
    assert _report("scan.nii.gz").exit_code == 0
    assert "needs the five lobes" in _page(segmented / "scan_covidseg.html")


def test_a_series_is_read_again_as_its_report_says(here: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    folder = write(tmp_path / "study" / "chest", series())
    command = ["segment", str(folder), "--model", str(tiny_bundle), "--device", "cpu"]
    assert CliRunner().invoke(main, command).exit_code == 0
    result = _report(folder)
    assert result.exit_code == 0, result.output
    page = _page(here / "chest_covidseg.html")
    assert f"covidseg segment FOLDER --series {SERIES_UID}" in page
    assert "Muster" not in page


def test_the_tilt_of_an_earlier_series_is_undone_too(here: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    tilted = series()
    for k, one in enumerate(tilted):
        x, y, z = (float(value) for value in one.ImagePositionPatient)
        one.ImagePositionPatient = [x, y + 0.3 * k, z]
    for name, images in (("prior", tilted), ("scan", series())):
        command = ["segment", str(write(tmp_path / name, images)), "--model", str(tiny_bundle), "--device", "cpu"]
        assert CliRunner().invoke(main, [*command, "--shear-tilt"]).exit_code == 0
    result = _report(tmp_path / "scan", "--prior", tmp_path / "prior", "--shear-tilt")
    # Read it was; the phantom's lungs are too small to compare by.
    assert (result.exit_code, "mL of lung" in result.stderr) == (3, True), result.stderr


def test_a_window_is_that_of_the_report(here: Path, tiny_bundle: Path) -> None:
    grey = np.rint((phantom_hu() + 1250) / 1500 * 255).astype(np.uint8)
    grey[0, 0, :20] = np.arange(219, 239)  # more levels than a label map has
    nibabel.save(nibabel.Nifti1Image(grey, spl_affine(PHANTOM_SPACING_MM)), "grey.nii.gz")
    command = ["segment", "grey.nii.gz", "--window=-1250,250", "--model", str(tiny_bundle), "--device", "cpu"]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert _report("grey.nii.gz").exit_code == 0
    assert "--window=-1250,250" in _page(here / "grey_covidseg.html")


def test_an_earlier_scan_of_another_grid_is_compared(here: Path) -> None:
    """A COVID-19 case, segmented by the model that ships, and the same elsewhere: nothing is new, nothing is gone."""
    shutil.copy(DEMO_SCAN, here / "scan.nii.gz")
    assert CliRunner().invoke(main, ["segment", "scan.nii.gz", "--quality", "fast"]).exit_code == 0
    for file in ("{}.nii.gz", "{}_covidseg.nii.gz"):
        scan = nibabel.load(file.format("scan"))
        moved = scan.affine.copy()
        moved[:3, 3] += (6.0, -4.0, 9.0)
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(scan.dataobj), moved, scan.header), file.format("prior"))
    shutil.copy("scan_covidseg.json", "prior_covidseg.json")
    dates = ("--prior-date", "2020-02-01", "--date", "2020-02-15")
    result = _report("scan.nii.gz", "--prior", "prior.nii.gz", "--comparison", "c.json", *dates)
    assert result.exit_code == 0, result.output
    compared = json.loads((here / "c.json").read_text())
    assert compared["days"] == 14
    assert compared["infection_ml"]["delta"] == 0
    assert compared["lesions"]["new"]["count"] == compared["lesions"]["resolved"]["count"] == 0
    assert compared["lesions"]["persistent"]["count"] > 5
    page = _page(here / "scan_covidseg.html")
    assert "Change since the earlier scan" in page
    assert "14 days before" in " ".join(page.split())


def test_a_scan_without_enough_lung_to_place_it_by_is_not_compared(segmented: Path) -> None:
    result = _report("scan.nii.gz", "--prior", "scan.nii.gz")
    assert result.exit_code == 3
    assert "mL of lung" in result.stderr
    assert not list(segmented.glob("*.html"))
