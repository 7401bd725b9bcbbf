"""The page of the demo scan, segmented by the model that ships, in a real browser, from its file, without network."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, needs_browser, opened
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from covidseg.cli import main

DEMO = Path(__file__).parents[2] / "data" / "demo" / "coronacases_002_ct.nii.gz"
STATE = "document.documentElement.dataset.viewer"
NEXT_FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, made by the real commands."""
    folder = tmp_path_factory.mktemp("demo")
    labels = folder / "demo.nii.gz"
    for command in (["segment", str(DEMO), "-o", str(labels)], ["report", str(DEMO), "--labels", str(labels)]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    return folder / "demo.html"


@pytest.fixture(scope="module")
def page(page_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page once its viewer has drawn; tests change what it shows."""
    with opened(page_file, tmp_path_factory.mktemp("profile"), size=(900, 700)) as opened_page:
        opened_page.wait_for(f"{STATE} !== 'starting'")
        yield opened_page


@pytest.fixture(autouse=True)
def nothing_is_logged(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test makes the page log an error or a warning."""
    yield
    if "page" in request.fixturenames:
        assert request.getfixturevalue("page").console == []


def _click(page: Page, selector: str) -> None:
    page.evaluate(f"document.querySelector({selector!r}).click()")
    page.evaluate(NEXT_FRAME)


def _canvas(page: Page, name: str = "canvas") -> NDArray[np.int16]:
    """(height, width, 3): what the canvas shows."""
    page.evaluate(f"document.getElementById({name!r}).scrollIntoView()")
    page.evaluate(NEXT_FRAME)
    place = page.evaluate(f"document.getElementById({name!r}).getBoundingClientRect().toJSON()")
    shown = Image.open(io.BytesIO(page.picture())).convert("RGB")
    box = (place["left"], max(0, place["top"]), place["right"], min(place["bottom"], shown.height))
    return np.asarray(shown.crop([round(side) for side in box]), dtype=np.int16)


def _reddish(picture: NDArray[np.int16]) -> NDArray[np.bool_]:
    red, green, blue = np.moveaxis(picture, 2, 0)
    return (red > green + 40) & (red > blue + 40)


def _place(page: Page) -> str:
    return str(page.evaluate("document.getElementById('place').textContent"))


def test_the_viewer_draws_from_a_file_without_network(page: Page) -> None:
    assert page.evaluate(STATE) == "drawn"
    assert float(page.evaluate("document.documentElement.dataset.drawn")) > 0.3
    picture = _canvas(page)
    assert (picture.sum(axis=2) > 60).mean() > 0.3
    assert _reddish(picture).mean() > 0.002
    assert page.evaluate("getComputedStyle(document.getElementById('mosaic')).display") == "none"
    loaded = page.evaluate("performance.getEntriesByType('resource').map((one) => one.name.slice(0, 5))")
    assert set(loaded) <= {"data:"}


def test_the_patients_right_is_on_the_left_of_the_picture(page: Page) -> None:
    _click(page, "#show-lungs")
    _click(page, "[data-planes=axial]")
    red, green, blue = np.moveaxis(_canvas(page), 2, 0)
    right_lung, left_lung = (green > red + 25) & (green > blue + 25), (blue > red + 25) & (blue > green + 15)
    assert right_lung.mean() > 0.02
    assert left_lung.mean() > 0.02
    assert np.nonzero(right_lung)[1].mean() + 100 < np.nonzero(left_lung)[1].mean()
    _click(page, "#show-lungs")
    assert page.evaluate("document.getElementById('show-lungs').getAttribute('aria-pressed')") == "false"


def test_infection_goes_and_comes_by_the_key_i(page: Page) -> None:
    _click(page, "[data-planes=all]")
    page.evaluate("document.getElementById('canvas').focus()")
    before = _reddish(_canvas(page)).sum()
    _press(page, "i")
    assert _reddish(_canvas(page)).sum() == 0
    _press(page, "i")
    assert _reddish(_canvas(page)).sum() == before


def test_windows_change_what_is_bright(page: Page) -> None:
    lung = _canvas(page).mean()
    _click(page, "[data-window=soft]")
    assert _canvas(page).mean() < lung - 20
    _click(page, "[data-window=lung]")
    assert _canvas(page).mean() == pytest.approx(lung, abs=0.5)


def test_arrow_keys_and_the_slider_scroll(page: Page) -> None:
    _click(page, "[data-planes=axial]")
    page.evaluate("document.getElementById('canvas').focus()")
    page.evaluate("const slider = document.getElementById('slice'); slider.value = 60; slider.oninput")
    page.evaluate("document.getElementById('slice').dispatchEvent(new Event('input'))")
    assert _place(page).startswith("60 of 200 from the feet")
    for key, slice_number in (("ArrowUp", 61), ("ArrowDown", 60), ("PageUp", 70), ("PageDown", 60)):
        _press(page, key)
        assert _place(page).startswith(f"{slice_number} of 200"), key
    _click(page, "[data-planes=coronal]")
    assert "of 256 from the back" in _place(page)
    _click(page, "[data-planes=sagittal]")
    assert "of 256 from the left" in _place(page)


def test_a_click_in_the_table_shows_the_lesion(page: Page) -> None:
    _click(page, "[data-planes=axial]")
    rows = page.evaluate(
        "[...document.querySelectorAll('#lesions ~ .table-frame tbody tr')].map((row) => row.innerText)"
    )
    assert len(rows) >= 5
    for number, row in enumerate(rows):
        (slice_number,) = re.findall(r"(\d+) of 200", row)
        page.evaluate(f"document.querySelectorAll('[data-mm]')[{number}].click()")
        place = _place(page)
        assert place.startswith(f"{slice_number} of 200")
        assert place.endswith("infection")
    assert page.evaluate("document.activeElement.id") == "canvas"


def test_infection_shows_through_the_lungs_in_3d(page: Page) -> None:
    _click(page, "[data-planes=render]")
    page.wait_for("document.documentElement.dataset.rendering === 'drawn'")
    picture = _canvas(page, "canvas-3d")
    assert _reddish(picture).mean() > 0.002
    assert (picture.sum(axis=2) > 30).mean() > 0.05
    page.evaluate("document.querySelector('[data-mm]').click()")
    assert page.evaluate("document.getElementById('stage').hidden") is False
    assert page.evaluate("document.getElementById('opacity').disabled") is False


def test_on_a_phone_the_page_is_as_wide_as_the_phone(page: Page) -> None:
    page.resize(390, 844)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.resize(900, 700)


def test_on_paper_the_picture_stands_in_place_of_the_viewer(page: Page) -> None:
    page.send("Emulation.setEmulatedMedia", media="print")
    display = "getComputedStyle(document.getElementById('{}')).display"
    assert page.evaluate(display.format("viewer")) == "none"
    assert page.evaluate(display.format("mosaic")) == "block"
    page.send("Emulation.setEmulatedMedia", media="")
    assert page.printed().startswith(b"%PDF")


def test_text_has_enough_contrast_by_day_and_by_night(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        style = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
        inks = ("ink", "quiet", "link", "bad", "good")
        colours = {name: page.evaluate(style.format(name)) for name in (*inks, "paper", "panel", "warn-paper")}
        for ink in inks:
            for paper in ("paper", "panel"):
                assert _contrast(colours[ink], colours[paper]) >= 4.5, (scheme, ink, paper)
        assert _contrast(colours["ink"], colours["warn-paper"]) >= 4.5
    page.send("Emulation.setEmulatedMedia", features=[])


def test_without_webgl_the_picture_is_shown_and_the_reason_told(page_file: Path, tmp_path: Path) -> None:
    with opened(page_file, tmp_path, "--disable-3d-apis") as page:
        page.wait_for(f"{STATE} === 'failed'")
        assert page.evaluate("document.getElementById('viewer').hidden") is True
        assert page.evaluate("document.getElementById('mosaic').getBoundingClientRect().height") > 300
        assert page.evaluate("document.querySelector('#mosaic img').naturalWidth") == 1280
        assert "no WebGL 2" in page.evaluate("document.getElementById('viewer-status').innerText")
        assert page.evaluate("document.querySelectorAll('.jump:not([hidden])').length") == 0
        assert page.console == []


def test_without_javascript_the_picture_is_shown(page_file: Path, tmp_path: Path) -> None:
    with opened(page_file, tmp_path, "--blink-settings=scriptEnabled=false") as page:
        whole = np.asarray(Image.open(io.BytesIO(page.whole_picture())).convert("RGB"), dtype=np.int16)
        assert _reddish(whole[600:1800]).sum() > 5000, "the infection in the mosaic"
        assert page.console == []


def _press(page: Page, key: str) -> None:
    for event in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", type=event, key=key)
    page.evaluate(NEXT_FRAME)


def _contrast(ink: str, paper: str) -> float:
    """Contrast of two colours as #rrggbb, as of WCAG 2."""
    lighter, darker = sorted((_luminance(ink), _luminance(paper)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
