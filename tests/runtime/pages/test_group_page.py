"""The overview of a group: what it says, what it draws, and that a real browser reads it without complaint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import Page, needs_browser, opened
from group_results import lines_of, segment_phantoms, write_drawn_group, write_lines

from covidseg_runtime.group_table import Group, read_group
from covidseg_runtime.pages.chart_axes import LinearAxis
from covidseg_runtime.pages.group_charts import MOST_LINKED_POINTS, Mark, draw_histogram, draw_scatter
from covidseg_runtime.pages.group_page import GroupFiles, render_group_page

NO_FILES = GroupFiles({}, ("scans.csv",))
HOSTILE = "<script>document.title='taken'</script> onerror=\"x\".nii"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def group(tmp_path: Path) -> Group:
    """Drawn results: infections of 0, 10 … 110 mL, lungs of 4400 mL; one without lung, and two that failed."""
    results = tmp_path / "results"
    measures = [{"infection_ml": 10.0 * number} for number in range(12)]
    measures[3]["warnings"] = ["Slices are 6 mm apart; above 5 mm small lesions are missed."]
    measures[4]["warnings"] = ["Slices are 8 mm apart; above 5 mm small lesions are missed."]
    write_drawn_group(results, [*measures, {"lungs_ml": (0.0, 0.0), "infection_ml": 0.0}])
    failed = {
        "schema_version": 1,
        "status": "failed",
        "settings": {"model": "drawn 1", "precision": "f32"},
        "finished": "2026-01-02T03:04:05+00:00",
        "exit_code": 3,
    }
    lines = [{**failed, "scan": name, "error": f"{name} is empty."} for name in ("x.nii", "y.nii")]
    write_lines(results, [*lines_of(results), *lines])
    return read_group(results)


def _page(group: Group, files: GroupFiles = NO_FILES) -> str:
    return render_group_page(group, files).decode()


def _words(page: str) -> str:
    """The text of a page, as it is read."""

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.words: list[str] = []
            self.silent = 0

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.silent += tag in ("script", "style")

        def handle_endtag(self, tag: str) -> None:
            self.silent -= tag in ("script", "style")

        def handle_data(self, data: str) -> None:
            if not self.silent:
                self.words.append(data)

    reader = Reader()
    reader.feed(page)
    return " ".join(" ".join(reader.words).split())


# What it says


def test_it_says_what_group_numbers_are_not(group: Group) -> None:
    words = _words(_page(group))
    assert "Research use only. Not a medical device." in words
    assert "They are no prevalence: how scans were chosen decides what a group shows." in words
    assert "Opacities are not specific to COVID-19" in words


def test_the_median_and_its_quartiles_are_those_of_the_scans_that_have_the_measure(group: Group) -> None:
    # Infection of 0 to 110 mL in steps of 10, and 0 once more: of these 13 the 7th is 50, the 4th 20, the 10th 80.
    words = _words(_page(group))
    assert "Infection, mL 50.0 (20.0 to 80.0) n = 13; 0.0 to 110.0" in words
    # The scan without lung has no share and is an outlier: 12 shares of 0 to 2.5 %, the median 55 mL of 4400 mL.
    assert "Infected lung, % 1.2 (0.6 to 1.9) n = 12; 0.0 to 2.5" in words


def test_failures_and_warnings_are_grouped_by_what_they_say(group: Group) -> None:
    words = _words(_page(group))
    assert "2 … is empty. x.nii y.nii" in words
    assert "2 Slices are … mm apart; above 5 mm small lesions are missed. s03.nii s04.nii" in words


def test_outliers_stand_with_their_reasons_and_the_rules(group: Group) -> None:
    words = _words(_page(group))
    assert "s12.nii lungs of 0 mL, below 1500 mL" in words
    assert "more than 3.5 scaled MAD" in words


def test_a_number_that_is_missing_is_a_dash_and_not_zero(group: Group) -> None:
    page = _page(group)
    (row,) = re.findall(r'<tr class="outlier">.*', page)
    cells = re.findall(r'<td class="number">(.*?)</td>', row)
    assert cells == ["0", "0.0", "–", "–", "–", "0.0", "0.0", "–", "2", "0"]
    (failed, _) = re.findall(r'<tr class="failed">.*', page)
    assert set(re.findall(r'<td class="number">(.*?)</td>', failed)) == {"–"}
    assert "failed: x.nii is empty." in failed


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"model": "other 2"}, "The scans differ in model (drawn 1 (11), other 2 (1)): numbers of different models"),
        ({"precision": "int8"}, "The scans differ in precision (f32 (11), int8 (1)): the numbers are not of one kind"),
    ],
)
def test_mixed_models_and_settings_are_warned_of(tmp_path: Path, given: dict[str, str], sentence: str) -> None:
    write_drawn_group(tmp_path / "results", [given, *({} for _ in range(11))])
    assert sentence in _words(_page(read_group(tmp_path / "results")))
    write_drawn_group(tmp_path / "results", [{}, {}])
    assert "The scans differ" not in _words(_page(read_group(tmp_path / "results")))


def test_a_report_that_is_missing_makes_no_mixture_of_versions(tmp_path: Path, tiny_bundle: Path) -> None:
    results = segment_phantoms(tmp_path, ["a.nii", "b.nii"], tiny_bundle)
    (results / "a_covidseg.json").unlink()
    assert "The scans differ" not in _words(_page(read_group(results)))


def test_lines_that_were_passed_over_are_told(group: Group) -> None:
    assert "1 line of the manifests could not be read" in _words(_page(replace(group, passed_over=1)))
    assert "could not be read" not in _words(_page(group))


def test_scans_without_page_are_told_with_the_command_that_makes_them(group: Group) -> None:
    words = _words(_page(group, GroupFiles({"s00.nii": "s00_covidseg.html"}, ("scans.csv",))))
    assert "12 scans have no page of their own yet." in words
    assert "covidseg report results --scans SCANS" in words
    every = {scan.record.scan: "p.html" for scan in group.scans if scan.done}
    assert "no page of" not in _words(_page(group, GroupFiles(every, ("scans.csv",))))


def test_a_group_of_failures_and_a_single_scan_have_a_page_too(group: Group, tmp_path: Path) -> None:
    failures = replace(group, scans=tuple(scan for scan in group.scans if not scan.done))
    assert "No scan has this number." in _words(_page(failures))
    assert "0 scans" in _words(_page(replace(group, scans=())))
    write_drawn_group(tmp_path / "one", [{}])
    assert "n = 1; 100.0 to 100.0" in _words(_page(read_group(tmp_path / "one")))


def test_the_same_group_gives_the_same_bytes(group: Group) -> None:
    assert render_group_page(group, NO_FILES) == render_group_page(read_group(group.folder), NO_FILES)


def test_a_name_of_a_file_is_text_and_nothing_else(tmp_path: Path, tiny_bundle: Path) -> None:
    results = segment_phantoms(tmp_path, ["a.nii"], tiny_bundle)
    (line,) = lines_of(results)
    failed = {**line, "status": "failed", "error": f"{HOSTILE} is empty.", "scan": f"b{HOSTILE}"}
    write_lines(results, [{**line, "scan": HOSTILE, "warnings": [HOSTILE]}, failed])
    page = _page(read_group(results), GroupFiles({HOSTILE: 'a"onclick="x.html'}, ("scans.csv",)))
    assert "<script>document" not in page
    assert 'onclick="x' not in page
    assert HOSTILE in _words(page)


# What it draws


def _charts(page: str) -> list[ElementTree.Element]:
    charts = re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)
    return [ElementTree.fromstring(chart.replace("<svg", f'<svg xmlns="{SVG[1:-1]}"', 1)) for chart in charts]


def test_every_chart_has_a_title_its_content_in_words_and_named_axes(group: Group) -> None:
    charts = _charts(_page(group))
    labels = [[text.text for text in chart.iter(f"{SVG}text") if "label" in text.attrib["class"]] for chart in charts]
    assert labels == [
        ["infected lung, %", "scans"],
        ["infection, mL (log)", "scans"],
        ["lungs, mL", "scans"],
        ["mean of the infection, HU", "scans"],
        ["lungs, mL", "infected lung, %"],
        ["consolidation, mL (log)", "ground glass, mL (log)"],
    ]
    ids = [element.attrib["id"] for chart in charts for element in chart.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids)) == 2 * len(charts)
    for chart in charts:
        title, words = chart.find(f"{SVG}title"), chart.find(f"{SVG}desc")
        assert title is not None
        assert words is not None
        assert chart.attrib["aria-labelledby"] == f"{title.attrib['id']} {words.attrib['id']}"
        assert title.text
        assert words.text


def test_the_bars_of_a_histogram_have_the_height_of_their_counts() -> None:
    values = [1.0, 2.0, 2.5, 12.0]
    marks = [Mark("a", "plain", values[0]), *(Mark("b", "warned", value) for value in values[1:])]
    chart = draw_histogram("x", "Title", LinearAxis("lesions, mL", 10.0, 0, 2), marks)
    (svg,) = _charts(str(chart.svg))
    bars = [rect for rect in svg.iter(f"{SVG}rect")]
    # Two bins a step of 10: 0 to 5 holds one plain scan and two with warnings, 10 to 15 one.
    assert [bar.attrib["class"] for bar in bars] == ["bar plain", "bar warned", "bar warned"]
    plain, warned, last = (float(bar.attrib["height"]) for bar in bars)
    assert (warned, last) == (pytest.approx(2 * plain, abs=0.2), pytest.approx(plain, abs=0.2))
    assert float(bars[1].attrib["y"]) + warned == pytest.approx(float(bars[0].attrib["y"]), abs=0.2)
    assert "0 to 5: 3 scans; 10 to 15: 1 scan" in str(chart.svg)
    # Sorted 1, 2, 2.5, 12: quartiles 1.75, 2.25 and 4.875.
    assert chart.caption == "Lesions, mL: median 2.25, quartiles 1.75 and 4.88, of 4 scans."


def test_the_points_of_a_scatter_stand_where_their_values_are_and_lead_to_their_pages() -> None:
    axes = (LinearAxis("lungs, mL", 1000.0, 0, 5), LinearAxis("infected lung, %", 10.0, 0, 5))
    marks = [Mark("mid", "plain", 2500.0, 25.0, "mid.html"), Mark("corner", "outlier", 0.0, 0.0, None)]
    (svg,) = _charts(str(draw_scatter("x", "Title", axes, marks).svg))
    (circle,) = svg.iter(f"{SVG}circle")
    frame = re.fullmatch(r"M(\d+) (\d+)V(\d+)H(\d+)", [p.attrib["d"] for p in svg.iter(f"{SVG}path")][-2])
    assert frame is not None
    left, top, bottom, right = (float(value) for value in frame.groups())
    assert float(circle.attrib["cx"]) == pytest.approx((left + right) / 2)
    assert float(circle.attrib["cy"]) == pytest.approx((top + bottom) / 2)
    (link,) = svg.iter(f"{SVG}a")
    assert (link.attrib["href"], list(link)) == ("mid.html", [circle])
    told = circle.find(f"{SVG}title")
    assert told is not None
    assert told.text == "mid: 2500 (lungs, mL), 25 (infected lung, %)"


def test_of_very_many_scans_only_outliers_are_links_so_that_the_page_stays_small() -> None:
    axes = (LinearAxis("mL", 1000.0, 0, 5), LinearAxis("%", 10.0, 0, 5))
    marks = [Mark(f"s{number}", "plain", 1000.0, 10.0, "p.html") for number in range(MOST_LINKED_POINTS)]
    many = draw_scatter("x", "Title", axes, [*marks, Mark("odd", "outlier", 4000.0, 40.0, "odd.html")])
    assert re.findall(r'href="(.*?)"', many.svg) == ["odd.html"]
    assert len(many.svg) / len(marks) < 20
    assert many.svg.count("h0") == len(marks)


def test_a_page_of_thousands_of_scans_takes_less_than_a_kilobyte_each(group: Group) -> None:
    scans = tuple(replace(scan, record=replace(scan.record)) for scan in group.scans * 200)
    many = _page(replace(group, scans=scans))
    assert len(many) < 1000 * len(scans)
    assert many.count("<tr class=") == len(scans)


# In a browser


@pytest.fixture
def browser_page(group: Group, tmp_path: Path) -> Iterator[Page]:
    (group.folder / "index.html").write_bytes(
        render_group_page(group, GroupFiles({"s00.nii": "s00_covidseg.html"}, ("scans.csv",)))
    )
    with opened(group.folder / "index.html", tmp_path / "profile") as page:
        yield page


def _shown(page: Page) -> list[str]:
    return page.evaluate(
        "Array.from(document.querySelectorAll('#scans tbody tr')).filter(row => !row.hidden)"
        ".map(row => row.cells[0].textContent.replace('.nii', ''))"
    )


def _go(page: Page, fragment: str) -> None:
    """Follow a fragment as a link does, and wait until the page has."""
    page.evaluate(
        f"new Promise(done => {{ addEventListener('hashchange', () => done()); location.hash = '{fragment}' }})"
    )


@needs_browser
def test_a_browser_sorts_and_filters_what_the_address_says_and_finds_nothing_wrong(browser_page: Page) -> None:
    done = [f"s{number:02}" for number in range(13)]
    assert _shown(browser_page) == [*done, "x", "y"]
    # Shares grow with the number; s12 has no lung, x and y failed: without a number, last in both orders.
    _go(browser_page, "sort=infection_percent&order=descending")
    assert _shown(browser_page) == [*reversed(done[:12]), "s12", "x", "y"]
    assert browser_page.evaluate("document.querySelector('[aria-sort]').textContent") == "infected, %"
    _go(browser_page, "sort=infection_percent&order=ascending")
    assert _shown(browser_page) == [*done[:12], "s12", "x", "y"]
    _go(browser_page, "show=warned")
    assert _shown(browser_page) == ["s03", "s04"]
    _go(browser_page, "show=failed&find=Y.NII")
    assert _shown(browser_page) == ["y"]
    assert browser_page.evaluate("document.getElementById('shown').textContent") == "1 of 15 scans"
    _go(browser_page, "outliers")
    assert _shown(browser_page) == ["y"], "a link to a heading leaves the table as it is"
    _go(browser_page, "")
    assert _shown(browser_page) == [*done, "x", "y"]
    assert browser_page.console == []


@needs_browser
def test_what_a_reader_chose_stands_in_the_address_and_opens_the_same_view_elsewhere(
    browser_page: Page, group: Group
) -> None:
    click = "document.querySelector('[data-column=infection_ml] button').click()"
    browser_page.evaluate(click)
    assert _shown(browser_page)[:2] == ["s11", "s10"]
    browser_page.evaluate(click)
    assert _shown(browser_page)[:3] == ["s00", "s12", "s01"], "equal values stay in the order of their paths"
    address = browser_page.evaluate("location.hash")
    assert address == "#sort=infection_ml&order=ascending"
    copy = group.folder / "copy.html"
    copy.write_bytes((group.folder / "index.html").read_bytes())
    browser_page.send("Page.navigate", url=copy.as_uri() + address)
    browser_page.wait_for("document.readyState === 'complete'")
    assert browser_page.evaluate("location.pathname").endswith("copy.html")
    assert _shown(browser_page)[:3] == ["s00", "s12", "s01"]
    assert browser_page.console == []


@needs_browser
def test_an_address_of_another_hand_is_taken_as_far_as_it_has_meaning(browser_page: Page) -> None:
    _go(browser_page, "sort=nothing&order=sideways&show=<b>")
    assert len(_shown(browser_page)) == 15
    assert browser_page.console == []


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_itself_never_scrolls_sideways(browser_page: Page, width: int) -> None:
    browser_page.resize(width, 900)
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
def test_without_scripts_the_table_is_there_and_no_control_that_does_nothing(group: Group, tmp_path: Path) -> None:
    page = _page(group)
    static = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    (tmp_path / "static.html").write_text(static)
    with opened(tmp_path / "static.html", tmp_path / "profile") as browser:
        assert len(_shown(browser)) == 15
        assert browser.evaluate("document.getElementById('controls').checkVisibility()") is False
        assert browser.evaluate("document.querySelectorAll('button').length") == 0
        assert browser.console == []
