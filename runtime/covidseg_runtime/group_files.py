"""The table of a group as CSV and as Parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from covidseg_runtime.group_columns import COLUMNS, Row, Value
from covidseg_runtime.report import LIMITS, NOTICE
from covidseg_runtime.volume_files import write_bytes_atomic

TABLE_SCHEMA_VERSION = 1
# A cell that begins with one of these may be computed by a spreadsheet; "'" is among them so that it can be undone.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")
_END_OF_LINE = "\r\n"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the table as CSV (RFC 4180, UTF-8, with a line of names), whole or not at all.

    Texts are quoted, a missing value is empty, times are ISO 8601. A text that a spreadsheet could take for a formula
    has a ``'`` before it.

    Raises:
        OutputError: If it cannot be written.
    """
    names = ",".join(_cell(column.name) for column in COLUMNS)
    lines = (",".join(_cell(row[column.name]) for column in COLUMNS) for row in rows)
    write_bytes_atomic(path, "".join(f"{line}{_END_OF_LINE}" for line in (names, *lines)).encode())


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write the table as Parquet, whole or not at all; unit and meaning of a column are metadata of its field.

    Raises:
        ModuleNotFoundError: If pyarrow is not installed.
        OutputError: If it cannot be written.
    """
    arrow, parquet = import_pyarrow()
    types = {"text": arrow.string(), "number": arrow.float64(), "count": arrow.int64()}
    types["time"] = arrow.timestamp("ms", tz="UTC")
    fields = [
        arrow.field(column.name, types[column.kind], metadata={"unit": column.unit, "meaning": column.meaning})
        for column in COLUMNS
    ]
    about = {"schema_version": TABLE_SCHEMA_VERSION, "notice": NOTICE, "limits": LIMITS}
    schema = arrow.schema(fields, metadata={"covidseg": json.dumps(about)})
    arrays = [arrow.array([row[field.name] for row in rows], field.type) for field in fields]
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.Table.from_arrays(arrays, schema=schema), sink)
    write_bytes_atomic(path, sink.getvalue().to_pybytes())


def import_pyarrow() -> tuple[Any, Any]:
    """Pyarrow, and its module for Parquet.

    Raises:
        ModuleNotFoundError: If it is not installed: extra `parquet`.
    """
    return import_module("pyarrow"), import_module("pyarrow.parquet")


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        text = f"'{value}" if value.startswith(_FORMULA_STARTS) else value
        return '"' + text.replace('"', '""') + '"'
    return repr(value)
