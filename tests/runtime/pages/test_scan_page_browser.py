"""The page of the demo scan in a real browser, from its file and without network: it draws, obeys and prints.

The browser draws without a graphics card, which takes its time: the page is opened once, and each test leaves the
viewer as it found it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, needs_browser, opened
from demo_page import DemoPage
from numpy.typing import NDArray
from PIL import Image

from covidseg_runtime.pages.scan_page import slice_from_feet

pytestmark = needs_browser
DESKTOP, PHONE = (1280, 900), (390, 844)
DECIDED = "['drawn', 'failed'].includes(document.documentElement.dataset.viewer)"
# Twice: what a script draws is on the screen with the frame after the next.
PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


@pytest.fixture(scope="module")
def html(demo: DemoPage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "demo.html"
    path.write_bytes(demo.page)
    return path


@pytest.fixture(scope="module")
def page(html: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(html, tmp_path_factory.mktemp("profile"), size=DESKTOP) as browser:
        browser.wait_for(DECIDED)
        yield browser


def _pixels(page: Page, element: str) -> NDArray[np.int16]:
    """What an element shows, (rows, columns, RGB)."""
    page.evaluate(f"document.querySelector('{element}').scrollIntoView({{block: 'center'}})")
    page.evaluate(PAINTED)
    box = page.evaluate(f"document.querySelector('{element}').getBoundingClientRect().toJSON()")
    edges = [round(box[name]) for name in ("left", "top", "right", "bottom")]
    with Image.open(io.BytesIO(page.picture())) as picture:
        return np.asarray(picture.convert("RGB").crop(edges)).astype(np.int16)


def _red(pixels: NDArray[np.int16]) -> int:
    """How many pixels are of the infection's colour; the cross hair is yellow."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return int(np.count_nonzero((red - green > 50) & (red - blue > 50)))


def _press(page: Page, key: str) -> None:
    page.evaluate("document.getElementById('canvas').focus()")
    for kind in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", type=kind, key=key)


def _click(page: Page, selector: str) -> None:
    page.evaluate(f"document.querySelector('{selector}').click()")


def _place(page: Page) -> str:
    return page.evaluate("document.getElementById('place').textContent")


def _slice(demo: DemoPage, data_mm: str) -> str:
    """How the page tells the axial slice of a place."""
    return f"{slice_from_feet(demo.volume, [float(mm) for mm in data_mm.split(',')])} from the feet"


def _is_shown(page: Page, selector: str) -> bool:
    return page.evaluate(f"document.querySelector('{selector}').checkVisibility()")


# It draws


def test_the_viewer_draws_the_scan_and_takes_the_place_of_the_picture(page: Page) -> None:
    assert page.evaluate("document.documentElement.dataset.viewer") == "drawn"
    assert float(page.evaluate("document.documentElement.dataset.drawn")) > 0.5
    assert page.evaluate("document.getElementById('viewer-status').textContent") == ""
    assert _is_shown(page, "#viewer")
    assert not _is_shown(page, "#mosaic")


def test_slices_are_grey_and_the_infection_is_red(page: Page) -> None:
    pixels = _pixels(page, "#canvas")
    grey = (np.ptp(pixels, axis=-1) <= 4) & (pixels[..., 0] > 30) & (pixels[..., 0] < 220)
    assert grey.mean() > 0.2
    assert _red(pixels) > 500


def test_it_begins_in_the_largest_lesion(page: Page, demo: DemoPage) -> None:
    first = re.search(r'data-mm="([^"]*)"', demo.page.decode())
    assert first is not None
    assert _place(page).startswith(_slice(demo, first[1]))
    assert _place(page).endswith("infection")


# It obeys


def test_the_infection_is_switched_off_and_on_by_button_and_by_key(page: Page) -> None:
    before = _red(_pixels(page, "#canvas"))
    for switch in (lambda: _click(page, "#show-infection"), lambda: _press(page, "i")):
        switch()
        assert page.evaluate("document.getElementById('show-infection').ariaPressed") == "false"
        assert _red(_pixels(page, "#canvas")) < before / 20
        switch()
        assert _red(_pixels(page, "#canvas")) == pytest.approx(before, rel=0.02)


def test_show_moves_to_each_lesion(page: Page, demo: DemoPage) -> None:
    places = re.findall(r'data-mm="([^"]*)"', demo.page.decode())
    for number in (2, 5, len(places)):
        _click(page, f'[aria-label="Show lesion {number}"]')
        assert _place(page).startswith(_slice(demo, places[number - 1]))
        assert _place(page).endswith("infection")
        assert _red(_pixels(page, "#canvas")) > 0
    _click(page, '[aria-label="Show lesion 1"]')


def test_arrow_keys_go_from_slice_to_slice(page: Page) -> None:
    def slice_number() -> int:
        return int(page.evaluate("document.getElementById('slice').value"))

    first = slice_number()
    _press(page, "ArrowUp")
    assert slice_number() == first + 1
    assert _place(page).startswith(f"{first + 1} of 200 from the feet")
    for key, number in (("ArrowDown", first), ("PageUp", first + 10), ("PageDown", first)):
        _press(page, key)
        assert slice_number() == number


def test_the_window_changes_what_the_lungs_look_like(page: Page) -> None:
    lung = _pixels(page, "#canvas").mean()
    _press(page, "s")
    assert page.evaluate("document.querySelector('[data-window=soft]').ariaPressed") == "true"
    # From -160 HU on: lung becomes black.
    assert _pixels(page, "#canvas").mean() < lung - 20
    _click(page, "[data-window=lung]")
    assert _pixels(page, "#canvas").mean() == pytest.approx(lung, abs=2)


def test_planes_are_chosen_and_the_slider_follows(page: Page) -> None:
    for plane, count in (("axial", 200), ("coronal", 256), ("sagittal", 256)):
        _click(page, f"[data-planes={plane}]")
        assert page.evaluate("document.getElementById('slice').max") == str(count)
        assert page.evaluate("document.getElementById('slice-name').textContent") == f"{plane.title()} slice"
        assert (_pixels(page, "#canvas") > 30).mean() > 0.1
    _click(page, "[data-planes=all]")


def test_lungs_are_shown_when_asked_for(page: Page) -> None:
    def blue_and_green() -> int:
        red, green, blue = np.moveaxis(_pixels(page, "#canvas"), -1, 0)
        return int(np.count_nonzero((blue - red > 40) | (green - red > 40)))

    assert blue_and_green() < 200
    _click(page, "#show-lungs")
    assert blue_and_green() > 5000
    _click(page, "#show-lungs")
    assert blue_and_green() < 200


def test_the_patients_right_is_on_the_left_of_the_picture(page: Page) -> None:
    _click(page, "#show-lungs")
    _click(page, "[data-planes=axial]")
    red, green, blue = np.moveaxis(_pixels(page, "#canvas"), -1, 0)
    right_lung, left_lung = (green - red > 25) & (green - blue > 25), (blue - red > 25) & (blue - green > 15)
    assert min(np.count_nonzero(right_lung), np.count_nonzero(left_lung)) > 2000
    assert np.nonzero(right_lung)[1].mean() + 100 < np.nonzero(left_lung)[1].mean()
    _click(page, "#show-lungs")
    _click(page, "[data-planes=all]")


def test_text_has_enough_contrast_by_day_and_by_night(page: Page) -> None:
    """4.5 : 1, as WCAG 2 asks for."""
    style = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
    for scheme in ("light", "dark"):
        page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for ink in ("ink", "quiet", "link", "bad", "good"):
            for paper in ("paper", "panel"):
                contrast = _contrast(page.evaluate(style.format(ink)), page.evaluate(style.format(paper)))
                assert contrast >= 4.5, (scheme, ink, paper)
        assert _contrast(page.evaluate(style.format("ink")), page.evaluate(style.format("warn-paper"))) >= 4.5
    page.send("Emulation.setEmulatedMedia", features=[])


def _contrast(*colours: str) -> float:
    """Of two colours written #rrggbb."""
    darker, lighter = sorted(_luminance(colour) for colour in colours)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


# On a phone, on paper, without WebGL


def test_nothing_is_wider_than_a_phone(page: Page) -> None:
    page.resize(*PHONE)
    page.evaluate(PAINTED)
    # A window grows with what does not fit, so its own width would judge nothing.
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    assert _is_shown(page, "#viewer")
    page.resize(*DESKTOP)
    page.evaluate(PAINTED)


def test_printing_gives_a_pdf(page: Page) -> None:
    pdf = page.printed()
    assert pdf.startswith(b"%PDF-")
    assert b"/Image" in pdf  # the picture stands where the viewer was


def test_in_space_the_infection_stands_within_the_lungs(page: Page) -> None:
    _click(page, "[data-planes=render]")
    page.wait_for("document.querySelector('[data-planes=render]').ariaPressed === 'true'")
    assert _red(_pixels(page, "#canvas-3d")) > 500
    assert page.evaluate("document.getElementById('opacity').disabled"), "it is of the slices"
    _click(page, "[data-planes=all]")
    assert _is_shown(page, "#canvas")
    assert not page.evaluate("document.getElementById('opacity').disabled")


def test_after_all_that_nothing_was_logged(page: Page) -> None:
    assert page.console == []


def test_without_webgl_the_picture_stays_and_the_reason_is_told(html: Path, tmp_path: Path) -> None:
    with opened(html, tmp_path / "profile", "--disable-3d-apis", size=PHONE) as browser:
        browser.wait_for(DECIDED)
        assert browser.evaluate("document.documentElement.dataset.viewer") == "failed"
        assert not _is_shown(browser, "#viewer")
        assert _is_shown(browser, "#mosaic")
        assert not _is_shown(browser, "[data-mm]")
        status = browser.evaluate("document.getElementById('viewer-status').textContent")
        assert status == "The slices are shown as a picture: this browser has no WebGL 2 here."
        assert _pixels(browser, "#mosaic img").std() > 20
        assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        assert browser.console == []


def test_without_javascript_the_picture_is_there(html: Path, tmp_path: Path) -> None:
    with opened(html, tmp_path / "profile", "--blink-settings=scriptEnabled=false", size=DESKTOP) as browser:
        with Image.open(io.BytesIO(browser.whole_picture())) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(np.int16)
        assert _red(pixels[600:1800]) > 1000  # the infection in the picture
        assert browser.console == []
