"""The page of one scan says what was found, how sure that is, and how it came about."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from phantom import phantom_labels
from scan_results import made_up_follow_up, phantom_report, phantom_volume

from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.pages.scan_page import render_scan_page, slice_from_feet
from covidseg_runtime.volume import to_orientation


@pytest.fixture
def report(tiny_bundle: Path) -> dict[str, Any]:
    """The report on the phantom."""
    return phantom_report(load_bundle(tiny_bundle))


_BLOCKS = frozenset(("td", "th", "dt", "dd", "li", "p", "h1", "h2", "h3", "caption", "summary"))


class _Text(HTMLParser):
    """What a reader sees, and the elements left open."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "input", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in _BLOCKS:
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if not {"script", "style", "title"} & set(self.open):
            self.words.append(data)


def _text(page: bytes) -> str:
    parser = _Text()
    parser.feed(page.decode())
    assert parser.open == [], "every element is closed in its order"
    return " ".join("".join(parser.words).split())


def _page(report: dict[str, Any], **more: Any) -> str:
    return _text(render_scan_page(phantom_volume(), phantom_labels(), report, **more))


def test_the_page_says_what_was_found(report: dict[str, Any]) -> None:
    text = _page(report)
    # 45.36 mL of lung of which 6 x 7 x 7 voxels of 4.5 mm3 are infected, all in the left lung, all at -300 HU.
    for words in (
        "Research use only. Not a medical device.",
        "Infection on chest CT ct.nii.gz",
        "network tiny 1.2.3",
        "1.3 mL 1.3 mL 0.0 mL",
        "Ground glass Infected voxels below −300 HU. 0.0 mL 0.0 %",
        "Consolidation Infected voxels of −300 HU and above;",
        "vessels within an infection count too. 1.3 mL 100.0 %",
        "Mean density of the infection Over all infected voxels. −300 HU",
        "1 Show left 1.3 mL 100.0 % −300 HU 11 of 28",
        "CT grade CT-1",
        "not given: needs the five lobes",
        "Opacities are not specific to COVID-19",
        "experts who outline the same infections agree with each other at Dice 0.70 (Bartoli 2022)",
        "probabilities are not calibrated",
        "fewer than five held-out cases",
        "the patient's right (R) is on the left",
        "BSD 2-Clause License",
    ):
        assert words in text, words


def test_the_origin_names_model_engine_settings_and_the_command(report: dict[str, Any]) -> None:
    report["settings"] = {"min_lesion_ml": 0.2, "quality": "balanced", "window_hu": [-1250.0, 250.0]}
    report["scan"]["window_hu"] = [-1250.0, 250.0]
    text = _page(report)
    for sha256 in report["model"]["files"].values():
        assert sha256 in text
    assert "Smallest lesion kept 0.2 mL" in text
    assert "balanced (step 0.5; 60 tiles of 16 × 16 × 16 voxels)" in text
    assert "grey levels of the window from -1250 to 250 HU; what lay outside is lost" in text
    assert (
        "covidseg segment ct.nii.gz --model tiny --engine fake-pointwise --precision f32 --quality balanced "
        "--min-lesion-ml 0.2 --window=-1250,250"
    ) in text


def test_of_dicom_the_command_names_the_series(report: dict[str, Any]) -> None:
    report["scan"]["file"] = "1.2.840.1"
    assert "covidseg segment FOLDER --series 1.2.840.1 --model" in _page(report)


def test_warnings_come_before_every_number(report: dict[str, Any]) -> None:
    report["warnings"] = ["Slices are missing.", "The <scan> is odd."]
    text = _page(report)
    assert text.index("Warnings Slices are missing. The <scan> is odd.") < text.index("1.3 mL")
    report["warnings"] = []
    assert "Warning" not in _page(report)


def test_the_range_and_the_temperature_are_told(report: dict[str, Any]) -> None:
    report["uncertainty"] = {
        "infection_volume_ml": {"low_ml": 0.9, "high_ml": 2.5, "cases": 8, "share": 0.8},
        "probability": {"temperature": 1.697, "cases": 6},
    }
    text = _page(report)
    assert "Infection 1.3 mL 0.9 to 2.5 mL, as 80% of 8 held-out cases" in text
    assert "middle 80 % of the ratios of reference to prediction on 8 cases" in text
    assert "divided by the temperature 1.70, fitted on 6 cases" in text


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>.nii.gz", 'Müller" onload="x.nii', "-->&lt;.nii"])
def test_a_file_name_is_only_a_name(report: dict[str, Any], name: str) -> None:
    report["scan"]["file"] = name
    page = render_scan_page(phantom_volume(), phantom_labels(), report)
    assert name in _text(page)
    assert page.count(b"<script") == 1 + 3  # NiiVue holds the word once; settings, NiiVue and the viewer are elements
    assert b"alert(1)</script>" not in page
    assert not re.search(rb"<[^>]*\sonload=", page.partition(b'<script type="application/json"')[0])


def test_the_viewer_gets_the_volumes_where_they_are(report: dict[str, Any]) -> None:
    page = render_scan_page(phantom_volume(), phantom_labels(), report).decode()
    found = re.search(r'<script type="application/json" id="viewer-settings">(.*?)</script>', page)
    assert found is not None
    settings = json.loads(found[1])
    labels = nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(settings["labels"])))
    x, y, z, _ = np.rint(np.linalg.inv(labels.affine) @ (*settings["start_mm"], 1.0)).astype(int)
    assert np.asarray(labels.dataobj)[x, y, z] == 3, "it begins in the largest lesion"
    assert settings["slices"] == [44, 36, 28]
    assert settings["colours"] == {"1": [60, 140, 255], "2": [60, 220, 120], "3": [255, 50, 40]}


def test_the_page_is_the_same_whatever_the_order_of_axes(report: dict[str, Any]) -> None:
    volume = phantom_volume()
    turned = to_orientation(volume, "LPS")
    labels = to_orientation(type(volume)(phantom_labels(), volume.affine), "LPS").voxels
    assert render_scan_page(turned, labels, report) == render_scan_page(volume, phantom_labels(), report)


def test_without_infection_the_page_says_so(report: dict[str, Any]) -> None:
    measures = report["measures"]
    nothing = {"whole": 0.0, "left": 0.0, "right": 0.0}
    measures.update(
        infection_volume_ml=nothing,
        infection_percent=nothing,
        ground_glass_ml=0.0,
        consolidation_ml=0.0,
        mean_infection_hu=None,
        lesion_count=0,
    )
    text = _text(render_scan_page(phantom_volume(), np.minimum(phantom_labels(), 2), report))
    assert "No infection was found." in text
    assert "CT-0" in text
    assert "no infection found" in text


def test_lobes_give_the_scores_of_five_lobes(report: dict[str, Any]) -> None:
    labels = phantom_labels()
    lobes = np.zeros_like(labels)
    lobes[labels == 2] = 5
    lobes[:10][labels[:10] == 2] = 4
    lobes[:8][labels[:8] == 2] = 3
    lobes[labels == 1] = 1
    lobes[:10][labels[:10] == 1] = 2
    lobes[labels == 3] = 0
    text = _page(report, lobes=lobes)
    assert "not given" not in text
    # Of a slice of the left lung (280 voxels) 49 are infected: 2 of 4 slices of the lower lobe (8.8 %), 4 of 12 of the
    # upper one (5.8 %).
    assert "CT severity score 4 of 25" in text
    assert "Total severity score 2 of 20" in text
    assert "By lobe, as labelled by another tool" in text


def test_a_change_since_an_earlier_scan_has_its_own_section(report: dict[str, Any]) -> None:
    text = _page(report, follow_up=made_up_follow_up())
    for words in (
        "Earlier scan: earlier.nii.gz, 12 days before.",
        "Warning on the comparison The lungs differ by 30 %: another breath.",
        "Infection 40.0 mL 50.0 mL +10.0 mL +25.0 %",
        "1 new: 3.0 mL",
        "1 resolved: 6.0 mL before",
        "1 persistent: 34.0 mL before, 47.0 mL now (+13.0 mL)",
        "persistent 2 before, 1 now Show 34.0 mL 47.0 mL +13.0 mL 12 of 28",
        "resolved Show 6.0 mL none −6.0 mL 1 of 28",
        "new Show none 3.0 mL +3.0 mL 1 of 28",
        "Lesions that touch are one.",
        "Brought together by affine of the lungs",
        "Overlap of the lungs Dice 0.951 after the affine part",
        "Shift 13 mm",
    ):
        assert words in text, words
    assert "Change since the earlier scan" not in _page(report)
    unknown = {**made_up_follow_up(), "days": None}
    assert "the days between the two are not known" in _page(report, follow_up=unknown)


def test_slices_are_counted_from_the_feet() -> None:
    volume = phantom_volume()
    assert slice_from_feet(volume, (0.0, 0.0, -250.0)) == "1 of 28"
    assert slice_from_feet(volume, (0.0, 0.0, -250.0 + 2 * 27)) == "28 of 28"
    assert slice_from_feet(to_orientation(volume, "LPI"), (0.0, 0.0, -250.0)) == "1 of 28"
