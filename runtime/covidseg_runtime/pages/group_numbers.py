"""What an overview of a group says in numbers: statistics, settings, and what a reader has to know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covidseg_runtime.group_columns import Row, Value, number_of
from covidseg_runtime.group_table import Group, GroupScan
from covidseg_runtime.pages.group_charts import Standing

# What results depend on, in words.
_SETTINGS = (
    ("model", "model"),
    ("model_sha256", "SHA-256 of its bundle.json"),
    ("engine", "engine"),
    ("provider", "execution provider"),
    ("precision", "precision"),
    ("quality", "quality"),
    ("min_lesion_ml", "smallest infection in mL"),
    ("window_low_hu", "window from HU"),
    ("window_high_hu", "window to HU"),
    ("covidseg", "version of covidseg"),
)
_MODEL = frozenset({"model", "model_sha256"})
MISSING = "–"


@dataclass(frozen=True)
class Measure:
    """A measure: its column, its name with unit, and digits after the point."""

    column: str
    name: str
    digits: int


MEASURES = (
    Measure("infection_percent", "Infected lung, %", 1),
    Measure("infection_ml", "Infection, mL", 1),
    Measure("ground_glass_ml", "Ground glass, mL", 1),
    Measure("consolidation_ml", "Consolidation, mL", 1),
    Measure("mean_infection_hu", "Mean of the infection, HU", 0),
    Measure("lesion_count", "Lesions", 0),
    Measure("lung_ml", "Lungs, mL", 0),
)


@dataclass(frozen=True)
class Statistic:
    """One measure of some scans, as text.

    Attributes:
        scans: How many have it.
        median: The median.
        quartiles: The first and the third one, interpolated.
        ends: Lowest and highest.
    """

    scans: int
    median: str
    quartiles: str
    ends: str


def standing_of(scan: GroupScan) -> Standing:
    """How a scan that was segmented is drawn and counted."""
    if scan.outlier:
        return "outlier"
    return "warned" if scan.record.warnings else "plain"


def number_text(value: float | None, digits: int) -> str:
    """A number with the minus sign of print; a dash where there is none."""
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", "−")


def describe_statistics(group: Group) -> list[tuple[str, list[Statistic]]]:
    """Of each measure: all scans, those that are no outliers, and of these the ones without warnings."""
    done = [scan for scan in group.scans if scan.done]
    kept = [scan for scan in done if standing_of(scan) != "outlier"]
    clean = [scan for scan in kept if standing_of(scan) == "plain"]
    return [(measure.name, [_statistic(measure, scans) for scans in (done, kept, clean)]) for measure in MEASURES]


def describe_settings(group: Group) -> list[tuple[str, list[tuple[str, int]]]]:
    """Of each setting its values, and how many scans have each; the most frequent first."""
    rows = [scan.row for scan in group.scans if scan.done]
    described = []
    for column, name in _SETTINGS:
        values = _values(rows, column)
        if set(values) - {MISSING}:
            described.append((name, values.most_common()))
    return described


def describe_mixture(group: Group) -> tuple[str, ...]:
    """A sentence for each setting in which scans differ."""
    rows = [scan.row for scan in group.scans if scan.done]
    sentences = []
    for column, name in _SETTINGS:
        values = _values(rows, column)
        if len(values) < 2:
            continue
        listed = ", ".join(f"{value} ({count})" for value, count in values.most_common())
        consequence = (
            "numbers of different models must not be compared, nor put together."
            if column in _MODEL
            else "the numbers are not of one kind; segment all with the same settings to compare them."
        )
        sentences.append(f"The scans differ in {name} ({listed}): {consequence}")
    return tuple(sentences)


def describe_voxels(rows: Sequence[Row]) -> str | None:
    """The range of the voxels' sizes along each axis."""
    ranges = []
    for column in ("spacing_x_mm", "spacing_y_mm", "spacing_z_mm"):
        values = [value for row in rows if (value := number_of(row, column)) is not None]
        if not values:
            return None
        low, high = f"{min(values):.3g}", f"{max(values):.3g}"
        ranges.append(low if low == high else f"{low} to {high}")
    return " × ".join(ranges) + " mm"


def describe_ranges(rows: Sequence[Row]) -> str | None:
    """What the range beside each volume of infection means."""
    kinds = {(number_of(row, "infection_range_share"), number_of(row, "infection_range_cases")) for row in rows}
    told = sorted((share, cases) for share, cases in kinds if share is not None and cases is not None)
    if not told:
        return None
    of_cases = " or ".join(f"{share:.0%} of {cases:.0f} held-out cases" for share, cases in told)
    return (
        f"The range beside a volume of infection is where the reference's volume lay in {of_cases}: single volumes may "
        "be off by as much, and the mean of a group may be off in one direction."
    )


def _values(rows: Sequence[Row], column: str) -> Counter[str]:
    """How many scans have each value; a version is in the report alone, which may be missing."""
    values = (row[column] for row in rows if column != "covidseg" or row[column] is not None)
    return Counter(_plain(value) for value in values)


def _statistic(measure: Measure, scans: Sequence[GroupScan]) -> Statistic:
    values = [value for scan in scans if (value := number_of(scan.row, measure.column)) is not None]
    if not values:
        return Statistic(0, MISSING, MISSING, MISSING)
    low, median, high = (number_text(float(value), measure.digits) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    ends = (number_text(value, measure.digits) for value in (min(values), max(values)))
    return Statistic(len(values), median, f"{low} to {high}", " to ".join(ends))


def _plain(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return MISSING if value is None else str(value)
