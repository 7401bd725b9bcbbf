"""`covidseg report RESULTS`, on what `covidseg segment` makes of real scans with the model that ships."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from browser import needs_browser, opened
from click.testing import CliRunner, Result
from group_results import lines_of, segment_phantoms, write_lines

from covidseg.cli import main
from covidseg_runtime.pages import folder_pages

DATA = Path(__file__).parents[1] / "data"
NOTICE = "Research use only. Not a medical device."
# What a name of a file may hold, and a URL may not, or takes for something else.
ODD_NAMES = ["a b#c%20?.nii", "http:x.nii", "'\"<&>.nii", os.fsdecode(b"M\xfcller.nii")]


def _report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COVID-19 case, a crop of another chest, and a mask, which is no scan, segmented by the real command."""
    folder = tmp_path_factory.mktemp("segmented")
    (folder / "scans" / "lidc").mkdir(parents=True)
    shutil.copy(DATA / "demo" / "coronacases_002_ct.nii.gz", folder / "scans" / "case.nii.gz")
    shutil.copy(DATA / "demo" / "coronacases_002_infection.nii.gz", folder / "scans" / "mask.nii.gz")
    shutil.copy(DATA / "lidc_0001_crop_ct.nii.gz", folder / "scans" / "lidc" / "crop.nii.gz")
    command = ["segment", str(folder / "scans"), "-o", str(folder / "results"), "--quality", "fast"]
    assert CliRunner().invoke(main, command).exit_code == 4, "the mask failed"
    return folder


@pytest.fixture
def real(here: Path, segmented: Path) -> Path:
    """A copy of the segmented folder to work in."""
    shutil.copytree(segmented, here, dirs_exist_ok=True)
    return here


@pytest.fixture
def drawn(here: Path, tiny_bundle: Path) -> Path:
    """Two phantoms, which are drawn, segmented by a tiny network."""
    segment_phantoms(here, ["a.nii", "ward/b.nii"], tiny_bundle)
    return here


def _rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file, strict=True)}


def _links(page: Path) -> list[Path]:
    """Where the links of a page lead, those within itself left out."""
    links = set(re.findall(r'href="([^"#][^"]*)"', page.read_text(encoding="utf-8")))
    return [page.parent / os.fsdecode(unquote_to_bytes(unescape(link))) for link in links]


def _state(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_results_of_real_scans_become_a_table_and_an_overview(real: Path) -> None:
    result = _report("results")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "scans              3",
        "segmented          2",
        "failed             1",
        "outliers           1",  # the crop, whose lungs are cut off
        "pages              0",
        "written            results/scans.csv",
        "written            results/index.html",
        NOTICE,
    ]
    rows = _rows(real / "results" / "scans.csv")
    assert {name: row["status"] for name, row in rows.items()} == {
        "case.nii.gz": "ok",
        "lidc/crop.nii.gz": "ok",
        "mask.nii.gz": "failed",
    }
    report = json.loads((real / "results" / "case_covidseg.json").read_text())
    measures = report["measures"]
    assert float(rows["case.nii.gz"]["infection_ml"]) == measures["infection_volume_ml"]["whole"] > 100
    assert float(rows["case.nii.gz"]["infection_left_percent"]) == measures["infection_percent"]["left"]
    found = report["uncertainty"]["infection_volume_ml"]
    assert float(rows["case.nii.gz"]["infection_high_ml"]) == found["high_ml"] > found["low_ml"] > 0
    assert "this looks like a label map" in rows["mask.nii.gz"]["error"]
    assert rows["mask.nii.gz"]["infection_ml"] == ""


def test_pages_are_made_once_and_the_overview_leads_to_them(real: Path) -> None:
    result = _report("results", "--scans", "scans")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        "3 scans, 2 pages to make",
        "[1/2] case.nii.gz: page written",
        "[2/2] lidc/crop.nii.gz: page written",
    ]
    assert "pages              2" in result.stdout
    links = _links(real / "results" / "index.html")
    assert {path.name for path in links} == {"case_covidseg.html", "crop_covidseg.html", "scans.csv"}
    assert all(path.is_file() for path in links)
    again = _report("results", "--scans", "scans")
    assert again.stderr.splitlines() == ["3 scans, 0 pages to make"]


@needs_browser
def test_a_browser_opens_the_overview_sorts_it_and_goes_on_to_a_page(real: Path, tmp_path: Path) -> None:
    _report("results", "--scans", "scans")
    with opened(real / "results" / "index.html", tmp_path / "profile") as page:
        page.evaluate(
            "new Promise(d => { addEventListener('hashchange', () => d()); location.hash = 'sort=infection_ml' })"
        )
        names = page.evaluate("Array.from(document.querySelectorAll('#scans tbody th')).map(cell => cell.textContent)")
        assert names == ["lidc/crop.nii.gz", "case.nii.gz", "mask.nii.gz"], "the one without number is last"
        page.send("Page.navigate", url=page.evaluate("document.querySelectorAll('#scans tbody a')[1].href"))
        page.wait_for("document.readyState === 'complete'")
        assert "case.nii.gz" in page.evaluate("document.body.innerText")
        assert [entry for entry in page.console if entry[0] == "error"] == []


def test_nothing_is_written_to_the_results_when_another_place_is_given(real: Path) -> None:
    before = _state(real / "results")
    result = _report("results", "--scans", "scans", "-o", "read/this")
    assert result.exit_code == 0, result.output
    assert _state(real / "results") == before
    read = real / "read" / "this"
    assert sorted(path.relative_to(read).as_posix() for path in read.rglob("*.*")) == [
        "case_covidseg.html",
        "index.html",
        "lidc/crop_covidseg.html",
        "scans.csv",
    ]
    assert all(path.is_file() for path in _links(read / "index.html"))


def test_pages_beside_the_results_are_linked_from_another_place(drawn: Path) -> None:
    assert _report("results", "--scans", "scans").exit_code == 0
    assert _report("results", "-o", "elsewhere").exit_code == 0
    page = (drawn / "elsewhere" / "index.html").read_text()
    assert 'href="../results/ward/b_covidseg.html"' in page
    assert all(path.is_file() for path in _links(drawn / "elsewhere" / "index.html"))


def test_a_folder_that_is_moved_takes_its_links_along(drawn: Path) -> None:
    assert _report("results", "--scans", "scans").exit_code == 0
    (drawn / "results").rename(drawn / "moved")
    links = _links(drawn / "moved" / "index.html")
    assert len(links) == 3
    assert all(path.is_file() for path in links)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_page_of_an_odd_name_is_found(here: Path, tiny_bundle: Path, name: str) -> None:
    segment_phantoms(here, [name], tiny_bundle)
    result = _report("results", "--scans", "scans")
    assert result.exit_code == 0, result.output
    links = _links(here / "results" / "index.html")
    assert sorted(path.suffix for path in links) == [".csv", ".html"]
    assert all(path.is_file() for path in links)
    assert not re.search(r'href="[a-z]+:', (here / "results" / "index.html").read_text())


def test_parquet_lies_beside_the_csv_and_is_linked(drawn: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    result = _report("results", "--parquet")
    assert result.exit_code == 0, result.output
    assert "written            results/scans.parquet" in result.stdout
    assert parquet.read_table(drawn / "results" / "scans.parquet")["scan"].to_pylist() == ["a.nii", "ward/b.nii"]
    assert drawn / "results" / "scans.parquet" in [here.resolve() for here in _links(drawn / "results" / "index.html")]


# What fails


def test_a_page_that_fails_is_exit_4_and_the_overview_is_written(drawn: Path) -> None:
    (drawn / "scans" / "a.nii").unlink()
    result = _report("results", "--scans", "scans")
    assert result.exit_code == 4
    assert "[1/2] a.nii: failed: a.nii is not in scans; give the folder that was segmented." in result.stderr
    assert result.stderr.splitlines()[-1] == "1 of 2 pages failed"
    assert {path.name for path in _links(drawn / "results" / "index.html")} == {"b_covidseg.html", "scans.csv"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_130_after_the_page_in_work_and_it_goes_on(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    render = folder_pages.render_scan_page

    def signalled(*arguments: object) -> bytes:
        os.kill(os.getpid(), number)
        return render(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(folder_pages, "render_scan_page", signalled)
        result = _report("results", "--scans", "scans")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "Interrupted: 1 page is left; the same command goes on."
    assert {path.name for path in _links(drawn / "results" / "index.html")} == {"a_covidseg.html", "scans.csv"}
    assert "2 scans, 1 page to make" in _report("results", "--scans", "scans").stderr


def test_a_folder_without_manifest_is_exit_3(here: Path) -> None:
    (here / "empty").mkdir()
    result = _report("empty")
    assert result.exit_code == 3
    assert not list((here / "empty").iterdir())


def test_results_of_a_later_covidseg_are_exit_3_and_nothing_is_written(drawn: Path) -> None:
    write_lines(drawn / "results", [{**line, "schema_version": 7} for line in lines_of(drawn / "results")])
    result = _report("results", "-o", "out")
    assert result.exit_code == 3
    assert "has schema version 7, this covidseg knows 1 at most; update covidseg to read it." in result.stderr
    assert not (drawn / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_exit_2(drawn: Path) -> None:
    result = _report("results", "-o", "scans/a.nii")
    assert result.exit_code == 2
    assert "scans/a.nii is a file; the report on a folder needs a folder" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        ("jinja2", [], "A page needs jinja2, which is not installed: pip install 'covidseg[report]'"),
        ("pyarrow", ["--parquet"], "--parquet needs pyarrow, which is not installed: pip install 'covidseg[parquet]'"),
    ],
)
def test_a_missing_extra_is_told_before_anything_is_written(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, module: str, arguments: list[str], sentence: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("covidseg_runtime.pages")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    before = _state(drawn / "results")
    result = _report("results", *arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert _state(drawn / "results") == before
