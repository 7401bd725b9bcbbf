"""Pages of the scans of a folder: made where they are missing, and only of what was segmented."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from group_results import lines_of, run_folder, segment_phantoms, write_lines
from phantom import PHANTOM_SPACING_MM, phantom_hu, spl_affine

from covidseg_runtime.errors import OutputError, SegmentationCancelled
from covidseg_runtime.group_table import read_group
from covidseg_runtime.pages.folder_pages import PageJob, PageOutcome, find_page, make_pages, scans_without_page

NAMES = ["a.nii.gz", "ward/b.nii"]


@pytest.fixture
def job(tmp_path: Path, tiny_bundle: Path) -> PageJob:
    """Two phantoms and a file that is no scan, segmented."""
    results = segment_phantoms(tmp_path, NAMES, tiny_bundle, broken=["broken.nii"])
    return PageJob(read_group(results), tmp_path / "scans", results)


def _again(job: PageJob) -> PageJob:
    """The job after something was changed in the folder of results."""
    return replace(job, group=read_group(job.group.folder))


def _make(job: PageJob, cancel: threading.Event | None = None) -> dict[str, str | None]:
    """Scan -> why it has no page, of those that were made or failed."""
    outcomes: list[PageOutcome] = []
    make_pages(job, scans_without_page(job), outcomes.append, cancel)
    return {outcome.scan.record.scan: None if outcome.error is None else str(outcome.error) for outcome in outcomes}


def _pages(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))


def test_every_scan_that_was_segmented_gets_its_page_beside_its_label_map(job: PageJob) -> None:
    assert _make(job) == {"a.nii.gz": None, "ward/b.nii": None}
    assert _pages(job.output) == ["a_covidseg.html", "ward/b_covidseg.html"]
    page = (job.output / "ward" / "b_covidseg.html").read_text()
    assert "b.nii" in page
    assert "Research use only. Not a medical device." in page


def test_a_page_that_is_there_is_not_made_again_until_its_label_map_is_younger(job: PageJob) -> None:
    _make(job)
    assert _make(job) == {}
    page, labels = job.output / "a_covidseg.html", job.output / "a_covidseg.nii.gz"
    later = page.stat().st_mtime + 3600
    os.utime(labels, (later, later))
    assert _make(_again(job)) == {"a.nii.gz": None}
    (job.output / "ward" / "b_covidseg.html").unlink()
    found = {scan.record.scan: find_page(job.group, scan, job.output) for scan in job.group.scans}
    assert found == {"a.nii.gz": None, "broken.nii": None, "ward/b.nii": None}, "the first is older than its labels"


def test_pages_of_another_folder_mirror_it_and_those_beside_the_results_count(job: PageJob, tmp_path: Path) -> None:
    elsewhere = replace(job, output=tmp_path / "elsewhere")
    before = sorted(job.group.folder.rglob("*"))
    assert set(_make(elsewhere)) == set(NAMES)
    assert _pages(tmp_path / "elsewhere") == ["a_covidseg.html", "ward/b_covidseg.html"]
    assert sorted(job.group.folder.rglob("*")) == before
    _make(job)
    assert _make(replace(job, output=tmp_path / "third")) == {}


def test_a_run_that_was_stopped_goes_on(job: PageJob) -> None:
    cancel = threading.Event()
    made: list[PageOutcome] = []

    def stop_after_the_first(outcome: PageOutcome) -> None:
        made.append(outcome)
        cancel.set()

    with pytest.raises(SegmentationCancelled):
        make_pages(job, scans_without_page(job), stop_after_the_first, cancel)
    assert [outcome.scan.record.scan for outcome in made] == ["a.nii.gz"]
    assert _make(job) == {"ward/b.nii": None}


def test_what_a_killed_run_had_not_finished_is_removed(job: PageJob) -> None:
    unfinished = [job.output / ".a_covidseg.html.k2x0ab_1", job.output / "ward" / ".b_covidseg.html.zzzzzzzz"]
    for path in unfinished:
        path.write_bytes(b"<html")
    other = job.output / ".notes.html.k2x0ab_1"
    other.write_bytes(b"mine")
    _make(job)
    assert [path.exists() for path in (*unfinished, other)] == [False, False, True]


# What fails, and does not stop the others


def test_a_scan_that_is_gone_or_another_one_now_has_no_page(job: PageJob) -> None:
    (job.scans / "a.nii.gz").unlink()
    other = nibabel.Nifti1Image(np.roll(phantom_hu(), 1, axis=1), spl_affine(PHANTOM_SPACING_MM))
    nibabel.save(other, job.scans / "ward" / "b.nii")
    assert _make(job) == {
        "a.nii.gz": f"a.nii.gz is not in {job.scans}; give the folder that was segmented.",
        "ward/b.nii": f"ward/b.nii in {job.scans} is not the scan that was segmented.",
    }
    assert _pages(job.output) == []


def test_scans_that_were_copied_since_are_known_by_their_content(job: PageJob, tmp_path: Path) -> None:
    shutil.copytree(job.scans, tmp_path / "copied", copy_function=shutil.copyfile)
    assert _make(replace(job, scans=tmp_path / "copied")) == {"a.nii.gz": None, "ward/b.nii": None}


def test_a_label_map_on_another_grid_is_refused_and_the_other_scan_has_its_page(job: PageJob) -> None:
    labels = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), spl_affine(PHANTOM_SPACING_MM))
    nibabel.save(labels, job.output / "a_covidseg.nii.gz")
    why = _make(_again(job))
    assert why["a.nii.gz"] == "a_covidseg.nii.gz is on another grid than a.nii.gz; it is not the scan's label map."
    assert why["ward/b.nii"] is None


def test_a_report_that_was_altered_makes_no_page(job: PageJob) -> None:
    path = job.output / "a_covidseg.json"
    path.write_text(path.read_text() + "\n")
    why = _make(_again(job))["a.nii.gz"]
    assert why == "a.nii.gz: its report is not the one that was recorded; segment it again for a page."


def test_the_page_of_a_label_map_that_a_person_corrected_says_whose_numbers_it_has(job: PageJob) -> None:
    path = job.output / "a_covidseg.nii.gz"
    labels = nibabel.load(path)
    corrected = np.asarray(labels.dataobj).copy()
    corrected[corrected == 3] = 1
    nibabel.save(nibabel.Nifti1Image(corrected, labels.affine), path)
    later = path.stat().st_mtime + 3600
    os.utime(path, (later, later))
    _make(_again(job))
    warning = "The label map was altered after it was measured: the numbers are those of the label map"
    assert warning in (job.output / "a_covidseg.html").read_text()
    assert warning not in (job.output / "ward" / "b_covidseg.html").read_text()


@pytest.mark.parametrize("name", ["../scans/a.nii.gz", "{folder}/scans/a.nii.gz"])
def test_no_scan_outside_of_the_folder_is_read(job: PageJob, tmp_path: Path, name: str) -> None:
    first, *others = lines_of(job.output)
    scan = name.format(folder=tmp_path)
    write_lines(job.output, [{**first, "scan": scan}, *others])
    assert "is not in" in str(_make(_again(job))[scan])


def test_a_place_that_cannot_be_written_ends_the_run(job: PageJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be made"):
        _make(replace(job, output=tmp_path / "file" / "pages"))


def test_a_scan_given_as_grey_levels_is_shown_in_its_window(tmp_path: Path, tiny_bundle: Path) -> None:
    levels = np.rint((phantom_hu() + 1250) / 1500 * 255).astype(np.uint8)
    levels[0, 0, :20] = np.arange(219, 239)  # more grey levels than a label map has
    (tmp_path / "scans").mkdir()
    nibabel.save(nibabel.Nifti1Image(levels, spl_affine(PHANTOM_SPACING_MM)), tmp_path / "scans" / "a.nii")
    run_folder(tmp_path, tiny_bundle, window_hu=(-1250.0, 250.0))
    results = tmp_path / "results"
    assert _make(PageJob(read_group(results), tmp_path / "scans", results)) == {"a.nii": None}
