"""Which scans of a group to look at before any number is used: by rules that stand in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covidseg_runtime.group_columns import WARNING_SEPARATOR, Row, number_of, text_of

# Modified z-score of Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): 1.4826 × MAD estimates the SD.
LARGEST_SCORE, SD_OF_MAD = 3.5, 1.4826
# Of fewer scans the spread is not known.
FEWEST_SCANS = 10
SMALLEST_LUNGS_ML, LARGEST_LUNGS_ML = 1500.0, 9000.0
SMALLEST_RATIO, LARGEST_RATIO = 0.5, 1.5
LONG_RUN, SHORTEST_LONG_RUN_S = 5.0, 60.0
# What the warnings say that take the meaning from a scan's numbers.
GRAVE_WORDS = ("unreliable", "found no lung", "this is mostly the")
# An infection that is small beside those of the others is no reason to doubt it.
_VOLUMES = (("lung_ml", "lungs", -LARGEST_SCORE), ("infection_ml", "infection", -math.inf))

RULES = (
    f"Lung volume: its logarithm is more than {LARGEST_SCORE:g} scaled MAD ({SD_OF_MAD} × the median absolute "
    "deviation) from the median of the group. Infection volume: the same, above the median only; volumes of 0 are left "
    f"out. Not judged in groups of fewer than {FEWEST_SCANS} such scans, or where half of the volumes are the same.",
    f"Lungs below {SMALLEST_LUNGS_ML / 1000:g} L or above {LARGEST_LUNGS_ML / 1000:g} L.",
    f"Left lung / right lung below {SMALLEST_RATIO:g} or above {LARGEST_RATIO:g}.",
    "A warning that the numbers are unreliable, that no lung was found, or that the scan is mostly of another region.",
    f"A segmentation of more than {LONG_RUN:g} times the group's median, and of {SHORTEST_LONG_RUN_S:g} s at least.",
    "A label map or a report that is missing, or was altered after it was recorded.",
)


@dataclass(frozen=True)
class Spread:
    """Median and scaled MAD of the logarithms of a group's volumes.

    Attributes:
        center: Median of ln(volume / mL).
        scale: 1.4826 × median absolute deviation from it.
    """

    center: float
    scale: float

    @classmethod
    def of(cls, volumes_ml: Sequence[float]) -> Spread | None:
        """The spread of positive volumes; None where too few are given, or half of them are the same."""
        if len(volumes_ml) < FEWEST_SCANS:
            return None
        logarithms = np.log(volumes_ml)
        center = float(np.median(logarithms))
        scale = SD_OF_MAD * float(np.median(np.abs(logarithms - center)))
        return cls(center, scale) if scale > 0 else None

    def score(self, volume_ml: float) -> float:
        """How many scaled MAD a positive volume is from the median."""
        return (math.log(volume_ml) - self.center) / self.scale


def find_outliers(rows: Sequence[Row]) -> tuple[tuple[str, ...], ...]:
    """For each row why it is an outlier; nothing for most of them, and for scans that failed.

    Args:
        rows: All of the group; only those with status "ok" are judged and compared with.
    """
    done = [row for row in rows if row["status"] == "ok"]
    spreads = {name: Spread.of(_positive(done, name)) for name, _, _ in _VOLUMES}
    seconds = [value for row in done if (value := number_of(row, "seconds")) is not None]
    usual_s = float(np.median(seconds)) if len(seconds) >= FEWEST_SCANS else None
    return tuple(
        (
            *_odd_volumes(row, spreads),
            *_odd_lungs(row),
            *_grave_warnings(row),
            *_long_run(row, usual_s),
            *_altered_files(row),
        )
        if row["status"] == "ok"
        else ()
        for row in rows
    )


def _positive(rows: Sequence[Row], name: str) -> list[float]:
    return [value for row in rows if (value := number_of(row, name)) is not None and value > 0]


def _odd_volumes(row: Row, spreads: Mapping[str, Spread | None]) -> tuple[str, ...]:
    reasons = []
    for name, what, lowest_score in _VOLUMES:
        volume, spread = number_of(row, name), spreads[name]
        if (
            spread is None
            or volume is None
            or volume <= 0
            or lowest_score <= (score := spread.score(volume)) <= LARGEST_SCORE
        ):
            continue
        reasons.append(
            f"{what} of {_ml(volume)}: {abs(score):.1f} scaled MAD {'above' if score > 0 else 'below'} the group's "
            f"median of {_ml(math.exp(spread.center))}"
        )
    return tuple(reasons)


def _odd_lungs(row: Row) -> tuple[str, ...]:
    reasons = []
    lung, left, right = (number_of(row, name) for name in ("lung_ml", "lung_left_ml", "lung_right_ml"))
    if lung is not None and not SMALLEST_LUNGS_ML <= lung <= LARGEST_LUNGS_ML:
        limit = f"below {SMALLEST_LUNGS_ML:.0f}" if lung < SMALLEST_LUNGS_ML else f"above {LARGEST_LUNGS_ML:.0f}"
        reasons.append(f"lungs of {lung:.0f} mL, {limit} mL")
    if lung and left is not None and right is not None:
        ratio = left / right if right else math.inf
        if not SMALLEST_RATIO <= ratio <= LARGEST_RATIO:
            limit = f"below {SMALLEST_RATIO:g}" if ratio < SMALLEST_RATIO else f"above {LARGEST_RATIO:g}"
            reasons.append(f"left lung of {left:.0f} mL, right lung of {right:.0f} mL: their ratio is {limit}")
    return tuple(reasons)


def _grave_warnings(row: Row) -> tuple[str, ...]:
    warnings = (text_of(row, "warnings") or "").split(WARNING_SEPARATOR)
    return tuple(warning for warning in warnings if any(word in warning for word in GRAVE_WORDS))


def _long_run(row: Row, usual_s: float | None) -> tuple[str, ...]:
    seconds = number_of(row, "seconds")
    if usual_s is None or seconds is None or seconds < max(SHORTEST_LONG_RUN_S, LONG_RUN * usual_s):
        return ()
    return (f"segmented in {seconds:.0f} s, the group's median is {usual_s:.1f} s",)


def _altered_files(row: Row) -> tuple[str, ...]:
    reasons = []
    for what, name, consequence in (
        ("label map", "labels_check", "the numbers are those of the label map that was written first"),
        ("report", "report_check", "only the manifest's numbers are in the table"),
    ):
        state = row[name]
        if state == "altered":
            reasons.append(f"the {what} was altered after it was recorded: {consequence}")
        elif state == "missing":
            ending = f": {consequence}" if what == "report" else ""
            reasons.append(f"the {what} is missing{ending}")
    return tuple(reasons)


def _ml(volume: float) -> str:
    return f"{volume:.0f} mL" if volume >= 100 else f"{volume:.1f} mL"
