"""Numbers are rounded to what they are worth, never to nothing, and one that is missing says why."""

from __future__ import annotations

from typing import Any

import pytest
from scan_results import made_up_follow_up

from covidseg_runtime.pages.measure_rows import change_rows, lobe_rows, lung_rows, whole_rows
from covidseg_runtime.pages.number_text import Cell, Row, hounsfield, ml, percent, signed
from covidseg_runtime.severity import Lobe

MEASURES: dict[str, Any] = {
    "lung_volume_ml": {"whole": 4626.662, "left": 2147.666, "right": 2478.996},
    "infection_volume_ml": {"whole": 200.0, "left": 50.04, "right": 149.96},
    "infection_percent": {"whole": 4.323, "left": 2.33, "right": 6.05},
    "ground_glass_ml": 150.0,
    "consolidation_ml": 50.0,
    "mean_lung_hu": -773.1,
    "mean_infection_hu": -434.4,
    "lesion_count": 14,
}
NOTHING = {"whole": None, "left": None, "right": None}


def _texts(row: Row) -> list[str]:
    return [cell.text for cell in row.cells]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0 mL"), (0.0004, "< 0.1 mL"), (0.05, "0.1 mL"), (196.733, "196.7 mL"), (4626.66, "4627 mL")],
)
def test_volumes(value: float, text: str) -> None:
    assert ml(value) == text


def test_shares_and_densities() -> None:
    assert (percent(4.25), percent(0.001), percent(0)) == ("4.2 %", "< 0.1 %", "0.0 %")
    assert (hounsfield(-434.4), hounsfield(12.0)) == ("\N{MINUS SIGN}434 HU", "12 HU")


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.04, "+2.0 mL"), (-0.05, "\N{MINUS SIGN}0.1 mL"), (0.0, "0.0 mL"), (-0.01, "0.0 mL"), (1052.8, "+1053 mL")],
)
def test_differences_have_a_sign_unless_they_are_nothing(value: float, text: str) -> None:
    assert signed(value, "mL") == text


def test_rows_of_the_lungs() -> None:
    lung, infection, share = lung_rows(MEASURES)
    assert _texts(lung) == ["4627 mL", "2148 mL", "2479 mL"]
    assert _texts(infection) == ["200.0 mL", "50.0 mL", "150.0 mL"]
    assert _texts(share) == ["4.3 %", "2.3 %", "6.0 %"]


def test_a_model_without_lungs_says_so_in_every_row_that_needs_them() -> None:
    measures = {**MEASURES, "lung_volume_ml": NOTHING, "infection_percent": NOTHING, "mean_lung_hu": None}
    lung, infection, share = lung_rows(measures)
    unknown = Cell("unknown: the model labels no lungs", known=False)
    assert lung.cells == share.cells == (unknown,) * 3
    assert infection.cells[0] == Cell("200.0 mL")
    assert whole_rows(measures, 0.05)[3].cells == (unknown,)


def test_a_side_without_lung_says_so() -> None:
    measures = {**MEASURES, "infection_percent": {"whole": 4.0, "left": None, "right": 4.0}}
    assert lung_rows(measures)[2].cells[1] == Cell("no lung found", known=False)


def test_rows_of_both_lungs_print_their_rules() -> None:
    ground_glass, consolidation, infection_hu, lung_hu, lesions = whole_rows(MEASURES, 0.05)
    assert _texts(ground_glass) == ["150.0 mL", "75.0 %"]
    assert _texts(consolidation) == ["50.0 mL", "25.0 %"]
    assert "below \N{MINUS SIGN}300 HU" in ground_glass.rule
    assert "of \N{MINUS SIGN}300 HU and above" in consolidation.rule
    assert (_texts(infection_hu), _texts(lung_hu)) == (["\N{MINUS SIGN}434 HU"], ["\N{MINUS SIGN}773 HU"])
    assert _texts(lesions) == ["14"]
    assert "of 0.05 mL or more" in lesions.rule
    assert "mL" not in whole_rows(MEASURES, None)[4].rule
    assert "mL" not in whole_rows(MEASURES, 0.0)[4].rule


def test_without_infection_its_density_is_none_rather_than_0() -> None:
    measures = {
        **MEASURES,
        "infection_volume_ml": {"whole": 0.0, "left": 0.0, "right": 0.0},
        "ground_glass_ml": 0.0,
        "consolidation_ml": 0.0,
        "mean_infection_hu": None,
        "lesion_count": 0,
    }
    ground_glass, _, infection_hu, _, lesions = whole_rows(measures, 0.05)
    assert ground_glass.cells == (Cell("0.0 mL"), Cell("no infection found", known=False))
    assert infection_hu.cells == (Cell("no infection found", known=False),)
    assert lesions.cells == (Cell("0"),)


def test_rows_of_a_change() -> None:
    infection, share, ground_glass, consolidation, lung = change_rows(made_up_follow_up())
    assert _texts(infection) == ["40.0 mL", "50.0 mL", "+10.0 mL", "+25.0 %"]
    assert _texts(share) == ["1.0 %", "1.2 %", "+0.2 points", "a share: see the points"]
    assert ground_glass.cells[3] == Cell("none before", known=False)
    assert consolidation.cells == (Cell("unknown", known=False),) * 4
    assert _texts(lung) == ["4000 mL", "2800 mL", "\N{MINUS SIGN}1200 mL", "\N{MINUS SIGN}30.0 %"]


def test_rows_of_lobes() -> None:
    there, missing = lobe_rows((Lobe("left upper", 1000.0, 0.01, 0.001), Lobe("right middle", 0.0, 0.0, None)))
    assert _texts(there) == ["1000 mL", "< 0.1 mL", "< 0.1 %"]
    assert missing.cells[2] == Cell("no such lobe", known=False)
