"""The overview of a group as one HTML page: counts, distributions, what to look at, and every scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covidseg_runtime.group_columns import number_of
from covidseg_runtime.group_outliers import RULES
from covidseg_runtime.group_table import Group, GroupScan
from covidseg_runtime.pages.chart_axes import LinearAxis, LogAxis
from covidseg_runtime.pages.group_charts import Chart, Mark, draw_histogram, draw_scatter
from covidseg_runtime.pages.group_numbers import (
    describe_mixture,
    describe_ranges,
    describe_settings,
    describe_statistics,
    describe_voxels,
    number_text,
    standing_of,
)
from covidseg_runtime.pages.page import render
from covidseg_runtime.pages.sentence_groups import group_sentences

# Of more outliers, or scans of one sentence, the rest is counted; the table has them all.
_MOST_LISTED = 100
_HISTOGRAMS = (
    ("infection_percent", "Infected share of the lungs", "infected lung, %", LinearAxis),
    ("infection_ml", "Volume of the infection", "infection, mL (log)", LogAxis),
    ("lung_ml", "Volume of the lungs", "lungs, mL", LinearAxis),
    ("mean_infection_hu", "Mean density of the infection", "mean of the infection, HU", LinearAxis),
)
# Columns of the table of scans: column, header, digits.
_COLUMNS = (
    ("lung_ml", "lungs, mL", 0),
    ("infection_ml", "infection, mL", 1),
    ("infection_percent", "infected, %", 1),
    ("infection_left_percent", "left, %", 1),
    ("infection_right_percent", "right, %", 1),
    ("ground_glass_ml", "ground glass, mL", 1),
    ("consolidation_ml", "consolidation, mL", 1),
    ("mean_infection_hu", "mean, HU", 0),
    ("lesion_count", "lesions", 0),
    ("warning_count", "warnings", 0),
)


@dataclass(frozen=True)
class GroupFiles:
    """What lies around the page.

    Attributes:
        links: Scan -> URL of its page, relative to this one; a scan without page is not in it.
        tables: Names of the files of the table, beside this page.
    """

    links: Mapping[str, str]
    tables: tuple[str, ...]


def render_group_page(group: Group, files: GroupFiles) -> bytes:
    """Make the page; the same group gives the same bytes.

    Args:
        group: What `read_group` gave.
        files: Pages of the scans, and the table.

    Returns:
        The HTML, UTF-8.
    """
    done = [scan for scan in group.scans if scan.done]
    rows = [scan.row for scan in done]
    return render(
        "group.html",
        folder=group.folder.resolve().name,
        group=group,
        tables=files.tables,
        last=max((row["finished"] for row in group.rows if row["finished"]), default=None),
        counts=Counter(standing_of(scan) if scan.done else "failed" for scan in group.scans),
        without_page=sum(scan.record.scan not in files.links for scan in done),
        mixture=describe_mixture(group),
        settings=describe_settings(group),
        voxels=describe_voxels(rows),
        ranges=describe_ranges(rows),
        statistics=describe_statistics(group),
        charts=_charts(done, files),
        outliers=_outliers(done, files),
        failures=_sentences(
            ((scan, scan.record.error or "no reason was recorded") for scan in group.scans if not scan.done), files
        ),
        warnings=_sentences(((scan, warning) for scan in done for warning in scan.record.warnings), files),
        rules=RULES,
        columns=[(name, header) for name, header, _ in _COLUMNS],
        rows=[_table_row(scan, files) for scan in group.scans],
    )


def _charts(scans: Sequence[GroupScan], files: GroupFiles) -> list[Chart]:
    charts = []
    for column, title, label, kind in _HISTOGRAMS:
        marks = _marks(scans, files, column)
        axis = kind.of(label, [mark.x for mark in marks])
        charts.append(draw_histogram(column.replace("_", "-"), title, axis, marks))
    marks = _marks(scans, files, "lung_ml", "infection_percent")
    axes = (
        LinearAxis.of("lungs, mL", [mark.x for mark in marks]),
        LinearAxis.of("infected lung, %", [0.0, *(mark.y for mark in marks)]),
    )
    charts.append(draw_scatter("share-against-lungs", "Infected share against lung volume", axes, marks))
    marks = _marks(scans, files, "consolidation_ml", "ground_glass_ml")
    volumes = [volume for mark in marks for volume in (mark.x, mark.y)]
    # Both axes from the same values: they have the same scale, and the diagonal is one.
    log_axes = (
        LogAxis.of("consolidation, mL (log)", volumes),
        LogAxis.of("ground glass, mL (log)", volumes),
    )
    title = "Ground glass against consolidation"
    charts.append(draw_scatter("ground-glass-consolidation", title, log_axes, marks, diagonal="as much of both"))
    return charts


def _marks(scans: Iterable[GroupScan], files: GroupFiles, x: str, y: str | None = None) -> list[Mark]:
    """The scans that have a number in both columns."""
    marks = []
    for scan in scans:
        along, up = number_of(scan.row, x), 0.0 if y is None else number_of(scan.row, y)
        if along is not None and up is not None:
            name, link = str(scan.row["scan"]), files.links.get(scan.record.scan)
            marks.append(Mark(name, standing_of(scan), along, up, link))
    return marks


def _listed(scan: GroupScan, files: GroupFiles) -> dict[str, Any]:
    return {"name": scan.row["scan"], "link": files.links.get(scan.record.scan)}


def _outliers(scans: Sequence[GroupScan], files: GroupFiles) -> list[dict[str, Any]]:
    """Those with most reasons first; in large groups not all of them, which the table has."""
    ordered = sorted((scan for scan in scans if scan.outlier), key=lambda scan: -len(scan.outlier))
    return [{**_listed(scan, files), "reasons": scan.outlier} for scan in ordered[:_MOST_LISTED]]


def _sentences(said: Iterable[tuple[GroupScan, str]], files: GroupFiles) -> list[dict[str, Any]]:
    """Sentences that differ in numbers only, with their scans."""
    told = list(said)
    by_name = {scan.record.scan: scan for scan, _ in told}
    return [
        {
            "sentence": group.sentence.encode("utf-8", "backslashreplace").decode(),
            "count": len(group.scans),
            "scans": [_listed(by_name[name], files) for name in group.scans[:_MOST_LISTED]],
        }
        for group in group_sentences((scan.record.scan, sentence) for scan, sentence in told)
    ]


def _table_row(scan: GroupScan, files: GroupFiles) -> dict[str, Any]:
    remark = (
        "; ".join(reason.rstrip(".") for reason in scan.outlier)
        if scan.done
        else f"failed: {scan.row['error'] or 'no reason was recorded'}"
    )
    ranges = {"infection_ml": _range(scan)}
    cells = [(number_text(number_of(scan.row, name), digits), ranges.get(name)) for name, _, digits in _COLUMNS]
    return {
        **_listed(scan, files),
        "standing": standing_of(scan) if scan.done else "failed",
        "cells": cells,
        "remark": remark,
    }


def _range(scan: GroupScan) -> str | None:
    """The range of the volume of infection; that of none, scaled from 0, would say it is sure."""
    low, high = (number_of(scan.row, name) for name in ("infection_low_ml", "infection_high_ml"))
    return f"{number_text(low, 1)} to {number_text(high, 1)}" if low is not None and high else None
