"""The results of a folder as a table: one row a scan, from the manifests and the reports they name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from covidseg_runtime.bundle import sha256_of
from covidseg_runtime.folder_manifest import ScanRecord
from covidseg_runtime.folder_records import read_records, refuse_newer
from covidseg_runtime.group_columns import WARNING_SEPARATOR, Row, Value, row_of
from covidseg_runtime.group_outliers import find_outliers
from covidseg_runtime.report import REPORT_SCHEMA_VERSION

Check = Literal["as recorded", "altered", "missing"]
# A line is written right after its files, and tells whole seconds.
_CLOCK_S = 2.0


@dataclass(frozen=True, eq=False)
class GroupScan:
    """One scan.

    Attributes:
        record: The line that counts.
        row: A value for every column.
        outlier: Why it is an outlier; empty for most.
    """

    record: ScanRecord
    row: Row
    outlier: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether it was segmented."""
        return self.record.status == "ok"


@dataclass(frozen=True, eq=False)
class Group:
    """A folder of results.

    Attributes:
        folder: Where they lie.
        manifests: Names of the manifests that were read.
        scans: Sorted by path.
        passed_over: Lines of manifests that are no record.
    """

    folder: Path
    manifests: tuple[str, ...]
    scans: tuple[GroupScan, ...]
    passed_over: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """One a scan."""
        return tuple(scan.row for scan in self.scans)


def read_group(folder: Path) -> Group:
    """Read what `covidseg segment DIR -o folder` left.

    A report counts if it is the recorded one, by its SHA-256. Of one that was altered or is missing only the numbers
    of the manifest are known, and the row says so.

    Raises:
        VolumeError: If there is no manifest, one cannot be read, or a later covidseg wrote it or a report.
    """
    found = read_records(folder)
    rows = [_read_row(folder, record) for record in found.records]
    scans = tuple(
        GroupScan(record, {**row, "outlier": WARNING_SEPARATOR.join(reasons) or None}, reasons)
        for record, row, reasons in zip(found.records, rows, find_outliers(rows), strict=True)
    )
    return Group(folder, found.manifests, scans, found.passed_over)


def result_path(folder: Path, record: ScanRecord, kind: Literal["labels", "report"]) -> Path | None:
    """Where a result lies; None where none is recorded, or its path leads out of the folder."""
    entry = record.outputs.get(kind)
    if entry is None:
        return None
    return path_below(folder, entry["file"])


def path_below(folder: Path, name: str) -> Path | None:
    """A path that a manifest names; None where it leads out of the folder."""
    below = PurePosixPath(name)
    return None if below.is_absolute() or ".." in below.parts else folder / below


def _read_row(folder: Path, record: ScanRecord) -> dict[str, Value]:
    found: dict[str, Any] = {"warning_count": None, "warnings": None}
    report: Mapping[str, Any] = {}
    if record.status == "ok":
        report, found["report_check"] = _read_report(folder, record)
        found["labels_check"] = _check_labels(folder, record)
        found["warning_count"] = len(record.warnings)
        found["warnings"] = WARNING_SEPARATOR.join(record.warnings) or None
    return row_of({"line": asdict(record), "report": report, "found": found})


def _read_report(folder: Path, record: ScanRecord) -> tuple[Mapping[str, Any], Check]:
    """The recorded report, or what the manifest tells of it."""
    known = {"measures": {name: {"whole": value} for name, value in record.measures.items()}}
    path = result_path(folder, record, "report")
    try:
        content = None if path is None else path.read_bytes()
    except OSError:
        content = None
    if path is None or content is None:
        return known, "missing"
    try:
        report = json.loads(content)
    except (ValueError, RecursionError):
        return known, "altered"
    if isinstance(report, dict):
        refuse_newer(path, report.get("schema_version"), REPORT_SCHEMA_VERSION)
        if sha256(content).hexdigest() == record.outputs["report"]["sha256"]:
            return report, "as recorded"
    return known, "altered"


def _check_labels(folder: Path, record: ScanRecord) -> Check:
    """Compare the label map with its record; one that is not younger than its line is not read for it."""
    path = result_path(folder, record, "labels")
    try:
        if path is None or not path.is_file():
            return "missing"
        if path.stat().st_mtime <= _recorded_at(record) + _CLOCK_S:
            return "as recorded"
        return "as recorded" if sha256_of(path) == record.outputs["labels"]["sha256"] else "altered"
    except OSError:
        return "missing"


def _recorded_at(record: ScanRecord) -> float:
    """When the line was written, in seconds of the clock of files; before all of them where it does not tell."""
    try:
        return datetime.fromisoformat(record.finished).timestamp()
    except (ValueError, OverflowError, OSError):
        return -math.inf
