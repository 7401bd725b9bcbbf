"""The page of a scan says what its report says, why a number is missing, and what changed since an earlier scan."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from demo_page import DemoPage
from numpy.typing import NDArray
from page_text import section_of, words_of

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.measures import measure
from covidseg_runtime.pages.page import data_url
from covidseg_runtime.pages.scan_page import MOST_LESIONS, render_scan_page
from covidseg_runtime.preview import render_preview
from covidseg_runtime.report import LIMITS, NOTICE, plain_json
from covidseg_runtime.volume import Volume, to_orientation

FOLLOW_UP: dict[str, Any] = {
    "schema_version": 1,
    "days": 9,
    "infection_ml": {"prior": 40.0, "current": 52.5, "delta": 12.5, "delta_percent": 31.2},
    "infection_percent": {"prior": 1.0, "current": 1.3, "delta": 0.3},
    "ground_glass_ml": {"prior": 30.0, "current": 21.0, "delta": -9.0, "delta_percent": -30.0},
    "consolidation_ml": {"prior": 0.0, "current": 31.5, "delta": 31.5, "delta_percent": None},
    "lung_ml": {"prior": None, "current": 4200.0, "delta": None, "delta_percent": None},
    "lesions": {
        "new": {"count": 2, "current_ml": 5.25},
        "resolved": {"count": 1, "prior_ml": 3.5},
        "persistent": {"count": 3, "prior_ml": 36.5, "current_ml": 47.25, "delta_ml": 10.75},
    },
    "lesion_list": [
        {
            "change": "persistent",
            "prior_ml": 30.0,
            "current_ml": 41.5,
            "delta_ml": 11.5,
            "prior_lesions": 2,
            "current_lesions": 1,
            "center_mm": [61.0, -20.0, 80.0],
        },
        {
            "change": "resolved",
            "prior_ml": 3.5,
            "current_ml": 0.0,
            "delta_ml": -3.5,
            "prior_lesions": 1,
            "current_lesions": 0,
            "center_mm": [-61.0, 20.0, -80.0],
        },
    ],
    "registration": {"method": "affine of the lungs", "lung_dice": 0.957, "translation_mm": [1.0, -2.5, 3.0]},
    "prior": {"file": "<earlier>.nii.gz"},
    "warnings": ["The earlier scan's slices are 8 mm apart."],
    "rule": "Lesions are matched where they overlap.",
}
Small = Callable[[NDArray[np.uint8]], tuple[Volume, NDArray[np.uint8], dict[str, Any]]]


@pytest.fixture
def small(demo: DemoPage) -> Small:
    """A report on labels drawn by hand, (X, Y, Z): the demo's, but for the measures."""

    def described(labels: NDArray[np.uint8]) -> tuple[Volume, NDArray[np.uint8], dict[str, Any]]:
        affine = np.diag((-2.0, -2.0, 2.0, 1.0))
        hu = np.full(labels.shape, -600, np.int16)
        hu[:, :, 6] = -100
        volume = Volume(hu, affine)
        report = copy.deepcopy(demo.report)
        spl = to_orientation(volume, "SPL")
        labels_spl = to_orientation(Volume(labels, affine), "SPL").voxels
        report["measures"] = plain_json(asdict(measure(labels_spl, spl.voxels, spl.spacing_mm)))
        return volume, labels, report

    return described


def _lungs() -> NDArray[np.uint8]:
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[4:16, 4:26, 2:18], labels[24:36, 4:26, 2:18] = 2, 1
    return labels


def _tenths(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


# The demo scan


def test_every_measure_of_the_report_stands_in_the_tables(demo: DemoPage) -> None:
    measures, words = demo.report["measures"], section_of(demo.page, "measures")
    for name, key, unit in (
        ("A lung includes the infection in it.", "lung_volume_ml", "mL"),
        ("An infected voxel belongs to the lung whose voxels are nearest.", "infection_volume_ml", "mL"),
        ("Infection / lung volume.", "infection_percent", "%"),
    ):
        values = " ".join(f"{_tenths(measures[key][side])} {unit}" for side in ("whole", "left", "right"))
        assert f"{name} {values}" in words
    for key in ("ground_glass_ml", "consolidation_ml"):
        share = 100 * measures[key] / measures["infection_volume_ml"]["whole"]
        assert f"{measures[key]:.1f} mL {share:.1f} %" in words
    for key in ("mean_infection_hu", "mean_lung_hu"):
        assert f"−{-measures[key]:.0f} HU" in words  # noqa: RUF001 - the minus of print
    assert f"hang together by side, edge or corner of a voxel. {measures['lesion_count']}" in words
    assert "Infections of 0.05 mL or more" in words


def test_the_cards_hold_the_same_numbers(demo: DemoPage) -> None:
    measures, words = demo.report["measures"], words_of(demo.page)
    share, lungs = measures["infection_percent"]["whole"], measures["lung_volume_ml"]["whole"]
    assert f"Infected share of the lungs {share:.1f} % of {lungs:.0f} mL" in words
    worse = max(measures["infection_percent"]["left"], measures["infection_percent"]["right"])
    assert 0 < worse <= 25
    assert "CT grade CT-1 by the share of the worse lung" in words


def test_the_range_stands_with_the_cases_it_comes_from(demo: DemoPage) -> None:
    found = demo.report["uncertainty"]["infection_volume_ml"]
    words = words_of(demo.page)
    low, high = f"{found['low_ml']:.1f}", f"{found['high_ml']:.1f} mL"
    assert f"{low} to {high}, as 80% of {found['cases']} held-out cases" in words
    doubts = section_of(demo.page, "doubts")
    assert f"Infection of {found['low_ml']:.1f} mL to {high}" in doubts
    assert f"on {found['cases']} cases that were held out from training" in doubts


def test_warnings_come_before_every_number(demo: DemoPage) -> None:
    def words_with(*warnings: str) -> str:
        return words_of(render_scan_page(demo.volume, demo.labels, {**demo.report, "warnings": list(warnings)}))

    one = words_with("The first.")
    assert one.index("Warning The first.") < one.index("Infected share of the lungs")
    assert "Warnings The first. <b>Second</b>." in words_with("The first.", "<b>Second</b>.")


def test_it_says_what_it_is_not(demo: DemoPage) -> None:
    words = words_of(demo.page)
    assert words.count(NOTICE) == 2
    assert LIMITS in section_of(demo.page, "doubts")
    assert "not checked by a physician" in words


def test_the_model_is_named_with_the_sha256_of_its_files(demo: DemoPage) -> None:
    words = section_of(demo.page, "origin")
    model = demo.report["model"]
    assert f"{model['name']} {model['version']}" in words
    assert len(model["files"]) >= 2
    for name, sha256 in model["files"].items():
        assert f"SHA-256 of {name} {sha256}" in words


def test_the_command_repeats_what_the_report_tells(demo: DemoPage) -> None:
    engine = demo.report["engine"]
    command = (
        f"covidseg segment {demo.report['scan']['file']} --model {demo.report['model']['name']} "
        f"--engine {engine['name']} --device {engine['device']} --precision {engine['precision']} --quality fast "
        f"--threads {engine['threads']} --min-lesion-ml 0.05"
    )
    assert command in section_of(demo.page, "origin")


def test_seconds_of_every_step_and_their_sum_are_told(demo: DemoPage) -> None:
    words, timings = section_of(demo.page, "origin"), demo.report["timings_s"]
    for step, seconds in timings.items():
        assert f"{step.replace('_', ' ')} {seconds:.2f} s" in words
    assert f"sum {sum(timings.values()):.2f} s" in words


def test_as_many_lesions_are_listed_as_were_counted(demo: DemoPage) -> None:
    count = demo.report["measures"]["lesion_count"]
    listed = min(count, MOST_LESIONS)
    assert listed > 1
    html = demo.page.decode()
    assert re.findall(r'aria-label="Show lesion (\d+)"', html) == [str(number + 1) for number in range(listed)]
    said = "Largest first." if listed == count else f"The largest {listed} of {count}."
    assert said in section_of(demo.page, "lesions")


def test_each_listed_place_lies_in_the_infection(demo: DemoPage) -> None:
    places = re.findall(r'data-mm="([^"]*)"', demo.page.decode())
    to_voxels = np.linalg.inv(demo.volume.affine)
    for place in places:
        voxel = np.rint(to_voxels @ (*map(float, place.split(",")), 1.0))[:3].astype(int)
        assert demo.labels[tuple(voxel)] == 3


def test_the_picture_is_that_of_the_preview(demo: DemoPage) -> None:
    assert f'<img src="{data_url(render_preview(demo.volume, demo.labels), "image/png")}"' in demo.page.decode()


def test_the_page_weighs_less_than_10_mb_and_is_the_same_each_time(demo: DemoPage) -> None:
    assert len(demo.page) < 10_000_000
    assert render_scan_page(demo.volume, demo.labels, demo.report) == demo.page


def test_nothing_is_loaded_from_anywhere(demo: DemoPage) -> None:
    html = re.sub(r"<script\b.*?</script>", "", demo.page.decode(), flags=re.DOTALL)
    assert not re.search(r"(src|href|action)\s*=\s*[\"']?\s*(https?:)?//", html)


# What is missing


def test_a_model_without_lungs_has_no_share_and_no_zero_in_its_place(small: Small) -> None:
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[10:14, 10:14, 5:9] = 3
    volume, labels, report = small(labels)
    nothing = {"whole": None, "left": None, "right": None}
    report["measures"] |= {"lung_volume_ml": nothing, "infection_percent": nothing, "mean_lung_hu": None}
    report["measures"]["infection_volume_ml"] |= {"left": None, "right": None}
    page = render_scan_page(volume, labels, report)
    words = section_of(page, "measures")
    assert words.count("unknown: the model labels no lungs") == 3 + 3 + 1
    assert not re.search(r"(?<![\d.])0(\.0)? (mL|%)", words_of(page))
    assert "Infected share of the lungs unknown" in words_of(page)
    assert "not given: needs both lungs; the left and the right lung has no volume here" in words_of(page)


def test_a_lung_that_is_missing_is_told_and_has_no_share(small: Small) -> None:
    labels = _lungs()
    labels[labels == 1] = 0
    labels[8:10, 8:10, 8:10] = 3
    page = render_scan_page(*small(labels))
    assert "Infection / lung volume. 0.2 % no lung found 0.2 %" in section_of(page, "measures")
    assert "CT grade not given" in words_of(page)
    assert "needs both lungs; the left lung has no volume here" in words_of(page)


def test_without_infection_there_is_no_density_of_it(small: Small) -> None:
    page = render_scan_page(*small(_lungs()))
    words = section_of(page, "measures")
    assert words.count("no infection found") == 3  # two shares, one density
    assert "Infected voxels below −300 HU. 0.0 mL no infection found" in words  # noqa: RUF001 - the minus of print
    assert section_of(page, "lesions") == "Lesions No infection was found."
    assert "CT grade CT-0" in words_of(page)


def test_a_range_that_is_unknown_is_told(small: Small) -> None:
    volume, labels, report = small(_lungs())
    report["uncertainty"] = {"infection_volume_ml": None, "probability": {"temperature": 1.0, "cases": 0}}
    words = words_of(render_scan_page(volume, labels, report))
    assert "range unknown: fewer than five cases were held out" in words
    assert "The network's probabilities are not calibrated (temperature 1)." in words


def test_that_nothing_was_found_is_not_told_as_sure(small: Small) -> None:
    volume, labels, report = small(_lungs())
    nothing = {"low_ml": 0.0, "high_ml": 0.0, "cases": 9, "share": 0.8}
    report["uncertainty"] = {"infection_volume_ml": nothing, "probability": {"temperature": 1.0, "cases": 0}}
    words = words_of(render_scan_page(volume, labels, report))
    assert "0.0 to" not in words
    assert "Infection of" not in words
    assert "Infection may have been missed." in words


def test_a_hostile_name_stays_text(small: Small) -> None:
    volume, labels, report = small(_lungs())
    report["scan"]["file"] = "<script>alert(1)</script>\"'&ü.nii.gz"
    html = render_scan_page(volume, labels, report).decode()
    assert "<script>alert" not in html
    assert words_of(re.findall(r"<h1>.*?</h1>", html, re.DOTALL)[0]).endswith("<script>alert(1)</script>\"'&ü.nii.gz")


def test_more_lesions_than_are_listed_are_told(small: Small) -> None:
    labels = _lungs()
    for number in range(MOST_LESIONS + 5):
        labels[5 + 2 * (number % 5), 5 + 4 * (number // 5), 5] = 3
    page = render_scan_page(*small(labels))
    assert f"The largest {MOST_LESIONS} of {MOST_LESIONS + 5}." in section_of(page, "lesions")


def test_all_lesions_of_a_corrected_label_map_are_no_part_of_those_of_its_report(small: Small) -> None:
    labels = _lungs()
    labels[5:7, 5:7, 5:7] = labels[10:12, 5:7, 5:7] = labels[14:16, 15:17, 5:7] = 3
    volume, _, report = small(labels)
    assert report["measures"]["lesion_count"] == 3
    corrected = labels.copy()
    corrected[14:16, 15:17, 5:7] = 2
    words = section_of(render_scan_page(volume, corrected, report), "lesions")
    assert "Largest first." in words
    assert "The largest" not in words


def test_labels_of_another_shape_are_refused(small: Small) -> None:
    volume, labels, report = small(_lungs())
    with pytest.raises(VolumeError, match="labels have shape"):
        render_scan_page(volume, labels[:-1], report)


# What changed


def test_the_change_is_told_with_its_sign_or_why_there_is_none(small: Small) -> None:
    words = section_of(render_scan_page(*small(_lungs()), FOLLOW_UP), "change")
    assert "Earlier scan: <earlier>.nii.gz , 9 days before." in words
    for row in (
        "Infection 40.0 mL 52.5 mL +12.5 mL +31.2 %",
        "Infected share of the lung 1.0 % 1.3 % +0.3 points a share: see the points",
        "Ground glass 30.0 mL 21.0 mL −9.0 mL −30.0 %",  # noqa: RUF001 - the minus of print
        "Consolidation 0.0 mL 31.5 mL +31.5 mL none before",
        "Lung volume unknown 4200 mL unknown unknown",
    ):
        assert row in words


def test_new_resolved_and_persistent_lesions_are_counted_and_listed(small: Small) -> None:
    page = render_scan_page(*small(_lungs()), FOLLOW_UP)
    words = section_of(page, "change")
    assert "2 new : 5.2 mL" in words
    assert "1 resolved : 3.5 mL before" in words
    assert "3 persistent : 36.5 mL before, 47.2 mL now (+10.8 mL)" in words
    assert "persistent 2 before, 1 now Show 30.0 mL 41.5 mL +11.5 mL 20 of 20" in words
    assert "resolved Show 3.5 mL none −3.5 mL 1 of 20" in words  # noqa: RUF001 - the minus of print
    assert 'data-mm="-61.0,20.0,-80.0"' in page.decode()


def test_the_comparison_has_its_warnings_rule_and_registration(small: Small) -> None:
    words = section_of(render_scan_page(*small(_lungs()), FOLLOW_UP), "change")
    assert "Warning on the comparison The earlier scan's slices are 8 mm apart." in words
    assert "Lesions are matched where they overlap." in words
    assert "Overlap of the lungs Dice 0.957 after the affine part Shift 4 mm" in words


def test_a_page_without_comparison_has_no_such_section(small: Small) -> None:
    assert 'id="change"' not in render_scan_page(*small(_lungs())).decode()


# What lobes add


def test_lobes_give_the_two_sums_and_their_table(small: Small) -> None:
    labels = _lungs()
    # Right lung 12 × 22 × 16: upper half, then two quarters; left lung: two halves.
    lobes = np.zeros_like(labels)
    lobes[labels == 2], lobes[labels == 1] = 3, 1
    lobes[4:16, 4:26, 2:6], lobes[4:16, 4:26, 6:10], lobes[24:36, 4:26, 2:10] = 4, 5, 2
    labels[4:16, 4:26, 2:4] = 3  # half of the right middle lobe: 3 and 2 points
    page = render_scan_page(*small(labels), lobes=lobes)
    words = section_of(page, "severity")
    assert "CT severity score 3 of 25" in words
    assert "Total severity score 2 of 20" in words
    # 12 × 22 × 4 voxels of 8 mm³, half of them infected.
    assert "right middle 8.4 mL 4.2 mL 50.0 %" in words
    assert "left upper 16.9 mL 0.0 mL 0.0 %" in words


def test_without_lobes_the_sums_say_what_they_need(demo: DemoPage) -> None:
    words = section_of(demo.page, "severity")
    assert words.count("not given: needs the five lobes, which covidseg does not label") == 2
    assert "By lobe" not in words
