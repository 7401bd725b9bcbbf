"""The columns of the table of a group: names with units, and where in manifest and report each value stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Kind = Literal["text", "number", "count", "time"]
Value = str | float | int | datetime | None
Row = Mapping[str, Value]
# Between the warnings of a scan in one cell; none of them holds it.
WARNING_SEPARATOR = " | "


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: As in the first line of the CSV file; a quantity ends in its unit.
        kind: Of its values; all may be missing.
        unit: For the metadata of Parquet; "" where there is none.
        meaning: One sentence, as in the documentation.
        path: Where the value stands: first "line" (of the manifest), "report" or "found" (by reading them), then keys.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    path: tuple[str | int, ...]


def _line(name: str, kind: Kind, unit: str, meaning: str, *keys: str | int) -> Column:
    return Column(name, kind, unit, meaning, ("line", *keys))


def _report(name: str, kind: Kind, unit: str, meaning: str, *keys: str | int) -> Column:
    return Column(name, kind, unit, meaning, ("report", *keys))


def _found(name: str, kind: Kind, meaning: str) -> Column:
    return Column(name, kind, "", meaning, ("found", name))


def _sides(name: str, unit: str, meaning: str, measure: str) -> tuple[Column, ...]:
    """One measure of both lungs together, the left and the right."""
    return tuple(
        _report(name.format(side), "number", unit, f"{meaning}, {where}", "measures", measure, key)
        for side, where, key in (
            ("", "both lungs", "whole"),
            ("_left", "left lung", "left"),
            ("_right", "right lung", "right"),
        )
    )


def _axes(name: str, kind: Kind, unit: str, meaning: str, key: str) -> tuple[Column, ...]:
    """One property of the scan along each axis of its file."""
    return tuple(
        _report(name.format(axis), kind, unit, f"{meaning} along the file's {nth} axis", "scan", key, number)
        for number, (axis, nth) in enumerate((("x", "first"), ("y", "second"), ("z", "third")))
    )


_RANGE = ("uncertainty", "infection_volume_ml")

COLUMNS: tuple[Column, ...] = (
    _line("scan", "text", "", "Path below the folder of scans", "scan"),
    _line("status", "text", "", "`ok` or `failed`", "status"),
    _line("error", "text", "", "Why it failed, in one sentence", "error"),
    _line("exit_code", "count", "", "The exit code that the scan alone would have; 0 if it is done", "exit_code"),
    *_sides("lung{}_ml", "mL", "Volume of lung ∪ infection", "lung_volume_ml"),
    *_sides("infection{}_ml", "mL", "Volume of the infection", "infection_volume_ml"),
    _report("infection_low_ml", "number", "mL", "Lower end of the range of `infection_ml`", *_RANGE, "low_ml"),
    _report("infection_high_ml", "number", "mL", "Upper end of the range of `infection_ml`", *_RANGE, "high_ml"),
    _report("infection_range_share", "number", "", "Share of held-out cases within that range", *_RANGE, "share"),
    _report("infection_range_cases", "count", "", "Held-out cases that gave the range", *_RANGE, "cases"),
    *_sides("infection{}_percent", "%", "Infection / (lung ∪ infection) × 100", "infection_percent"),
    _report("ground_glass_ml", "number", "mL", "Infection below −300 HU", "measures", "ground_glass_ml"),
    _report("consolidation_ml", "number", "mL", "Infection of −300 HU and above", "measures", "consolidation_ml"),
    _report("mean_lung_hu", "number", "HU", "Mean of lung ∪ infection", "measures", "mean_lung_hu"),
    _report("mean_infection_hu", "number", "HU", "Mean of the infection", "measures", "mean_infection_hu"),
    _report("lesion_count", "count", "", "Lesions: 26-connected infections", "measures", "lesion_count"),
    _found("warning_count", "count", "How many warnings"),
    _found("warnings", "text", "The warnings, parted by a bar between spaces"),
    _found("outlier", "text", "Why the scan is an outlier, parted in the same way"),
    _line("model", "text", "", "Name and version of the bundle", "settings", "model"),
    _line("model_sha256", "text", "", "SHA-256 of the bundle's `bundle.json`", "settings", "model_sha256"),
    _line("engine", "text", "", "What computed", "settings", "engine"),
    _line("provider", "text", "", "ONNX Runtime's execution provider", "settings", "provider"),
    _line("precision", "text", "", "What it computed in", "settings", "precision"),
    _line("quality", "text", "", "`fast`, `balanced` or `best`", "settings", "quality"),
    _line("min_lesion_ml", "number", "mL", "Smaller infections became lung", "settings", "min_lesion_ml"),
    _line("window_low_hu", "number", "HU", "Lowest HU of a scan given as grey levels", "settings", "window_hu", 0),
    _line("window_high_hu", "number", "HU", "Highest HU of a scan given as grey levels", "settings", "window_hu", 1),
    *_axes("shape_{}", "count", "voxels", "Voxels", "shape"),
    *_axes("spacing_{}_mm", "number", "mm", "Distance of voxels", "spacing_mm"),
    _report("orientation", "text", "", "Where the file's three axes point", "scan", "orientation"),
    _line("seconds", "number", "s", "What the segmentation took, reading and writing aside", "seconds"),
    _line("finished", "time", "", "When the line was written, UTC", "finished"),
    _report("covidseg", "text", "", "Version of covidseg", "software", "version"),
    _line("input_sha256", "text", "", "SHA-256 of the scan", "input", "sha256"),
    _line("labels_file", "text", "", "Label map, below the folder of results", "outputs", "labels", "file"),
    _line("report_file", "text", "", "Report, below the folder of results", "outputs", "report", "file"),
    _found("labels_check", "text", "`as recorded`, `altered` or `missing`"),
    _found("report_check", "text", "`as recorded`, `altered` or `missing`"),
)


def row_of(sources: Mapping[str, Any]) -> dict[str, Value]:
    """The values of one scan; None where there is none, or none of the column's kind.

    Args:
        sources: "line", "report" and "found", each as JSON.
    """
    return {column.name: _of_kind(_at(sources, column.path), column.kind) for column in COLUMNS}


def number_of(row: Row, name: str) -> float | None:
    """A number of a row."""
    value = row[name]
    return float(value) if isinstance(value, int | float) else None


def text_of(row: Row, name: str) -> str | None:
    """A text of a row."""
    value = row[name]
    return value if isinstance(value, str) else None


def _at(value: Any, path: tuple[str | int, ...]) -> Any:  # noqa: ANN401 - JSON is a recursive type
    for key in path:
        if isinstance(key, str) and isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(key, int) and isinstance(value, list | tuple) and key < len(value):
            value = value[key]
        else:
            return None
    return value


def _of_kind(value: object, kind: Kind) -> Value:
    if kind == "text":
        # A file name need not be UTF-8, which CSV, Parquet and HTML are: what is not stands as \udcfc.
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else None
    if kind == "time":
        return _utc(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        return None
    if kind == "number":
        return float(value)
    return int(value) if float(value).is_integer() else None


def _utc(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return None if moment is None or moment.tzinfo is None else moment.astimezone(UTC)
