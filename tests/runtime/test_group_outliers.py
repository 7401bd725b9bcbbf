"""Outliers by rules whose limits are computed by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from group_results import write_drawn_group

from covidseg_runtime import scan_checks
from covidseg_runtime.group_outliers import GRAVE_WORDS, RULES, Spread
from covidseg_runtime.group_table import read_group

# Logarithms -2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2 around that of 100 mL: median 0, deviations 0 0 0 1 1 1 1 1 1 2 2,
# so MAD 1, scaled 1.4826; 3.5 of them are a factor of e^5.1891.
LOGARITHMS = (-2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2)
LIMIT = math.exp(3.5 * 1.4826)


def _outliers(folder: Path, measures: list[dict]) -> dict[str, tuple[str, ...]]:
    write_drawn_group(folder / "results", measures)
    return {str(scan.row["scan"]): scan.outlier for scan in read_group(folder / "results").scans if scan.outlier}


def _usual(count: int) -> list[dict]:
    return [{"infection_ml": 100.0 * math.exp(0.1 * number)} for number in range(count)]


def test_the_spread_is_the_scaled_mad_of_logarithms() -> None:
    spread = Spread.of([100.0 * math.exp(logarithm) for logarithm in LOGARITHMS])
    assert spread is not None
    assert spread.center == pytest.approx(math.log(100))
    assert spread.scale == pytest.approx(1.4826)
    assert spread.score(100.0 * LIMIT) == pytest.approx(3.5)


@pytest.mark.parametrize("volumes", [[], [100.0] * 9, [100.0] * 11, [100.0] * 6 + [200.0] * 5])
def test_too_few_volumes_or_equal_ones_have_no_spread(volumes: list[float]) -> None:
    assert Spread.of(volumes) is None


@pytest.mark.parametrize(("factor", "is_outlier"), [(0.99, False), (1.01, True)])
def test_an_infection_beyond_the_limit_is_an_outlier(tmp_path: Path, factor: float, is_outlier: bool) -> None:
    # The one more at the far end moves the median: 12 logarithms, median (0 + 0) / 2, deviations' median still 1.
    usual = [{"infection_ml": 100.0 * math.exp(logarithm)} for logarithm in LOGARITHMS]
    found = _outliers(tmp_path, [*usual, {"infection_ml": 100.0 * LIMIT * factor, "lungs_ml": (40000.0, 40000.0)}])
    reasons = found["s11.nii"]
    assert any(reason.startswith("infection of ") for reason in reasons) is is_outlier
    if is_outlier:
        assert "3.5 scaled MAD above the group's median of 100 mL" in reasons[0]


def test_a_small_infection_and_none_are_no_outliers(tmp_path: Path) -> None:
    assert not _outliers(tmp_path, [*_usual(12), {"infection_ml": 0.001}, {"infection_ml": 0.0}])


@pytest.mark.parametrize(
    ("lungs_ml", "reason"),
    [
        ((700.0, 790.0), "lungs of 1490 mL, below 1500 mL"),
        ((4500.0, 4510.0), "lungs of 9010 mL, above 9000 mL"),
        ((900.0, 1900.0), "left lung of 900 mL, right lung of 1900 mL: their ratio is below 0.5"),
        ((1900.0, 1200.0), "left lung of 1900 mL, right lung of 1200 mL: their ratio is above 1.5"),
        ((2000.0, 0.0), "left lung of 2000 mL, right lung of 0 mL: their ratio is above 1.5"),
    ],
)
def test_lungs_beyond_fixed_limits_are_outliers_in_the_smallest_group(
    tmp_path: Path, lungs_ml: tuple[float, float], reason: str
) -> None:
    assert _outliers(tmp_path, [{"lungs_ml": lungs_ml}]) == {"s00.nii": (reason,)}


@pytest.mark.parametrize("lungs_ml", [(700.0, 800.0), (4000.0, 5000.0), (1000.0, 2000.0), (1800.0, 1200.0)])
def test_lungs_at_the_limits_are_none(tmp_path: Path, lungs_ml: tuple[float, float]) -> None:
    assert not _outliers(tmp_path, [{"lungs_ml": lungs_ml}])


def test_a_warning_that_numbers_are_unreliable_is_a_reason_and_a_mild_one_is_not(tmp_path: Path) -> None:
    grave = "The noise in soft tissue has a standard deviation of 120 HU, above 100 HU: labels are unreliable."
    mild = "Slices are 6 mm apart; above 5 mm small lesions are missed and volumes are coarse."
    found = _outliers(tmp_path, [{"warnings": [mild, grave]}, {"warnings": [mild]}])
    assert found == {"s00.nii": (grave,)}


@pytest.mark.parametrize("words", GRAVE_WORDS)
def test_the_words_that_make_a_warning_grave_are_words_of_warnings(words: str) -> None:
    source = re.sub(r'"\s+f?"', "", Path(scan_checks.__file__).read_text(encoding="utf-8"))
    assert words in source


def test_a_run_that_took_very_long_is_an_outlier(tmp_path: Path) -> None:
    seconds = [10.0] * 11 + [59.0, 61.0]
    found = _outliers(tmp_path, [{"seconds": value} for value in seconds])
    assert found == {"s12.nii": ("segmented in 61 s, the group's median is 10.0 s",)}


def test_negative_volumes_of_a_report_by_another_hand_are_judged_without_failing(tmp_path: Path) -> None:
    found = _outliers(tmp_path, [*_usual(12), {"infection_ml": -5.0, "lungs_ml": (-10.0, 2000.0)}])
    assert list(found) == ["s12.nii"]


def test_the_rules_name_the_limits() -> None:
    text = " ".join(RULES)
    for limit in ("3.5 scaled MAD", "1.4826", "1.5 L", "9 L", "0.5", "5 times", "60 s", "fewer than 10"):
        assert limit in text
