"""CSV and Parquet hold the same table, and no text of them is a formula."""

from __future__ import annotations

import csv
import io
import json
import os
from datetime import datetime
from pathlib import Path

import pytest
from group_results import lines_of, segment_phantoms, write_drawn_group, write_lines

from covidseg_runtime.errors import OutputError
from covidseg_runtime.group_columns import COLUMNS, Row
from covidseg_runtime.group_files import write_csv, write_parquet
from covidseg_runtime.group_table import read_group

# File names that a spreadsheet would compute, or that end a cell or a line where quoting is left out.
NASTY = [
    '=cmd|"/C calc"!A0.nii',
    "+1.nii",
    "-1.nii",
    "@SUM(1).nii",
    "\t=1.nii",
    "＝1.nii",
    "'=1.nii",
    "a;=1,b.nii",
    'say "x".nii',
    "two\nlines.nii",
    "Größe µ 肺.nii",
    os.fsdecode(b"M\xfcller.nii"),
]


@pytest.fixture
def rows(tmp_path: Path, tiny_bundle: Path) -> tuple[Row, ...]:
    """Two phantoms of which one failed, and copies of the one that did not under every nasty name."""
    results = segment_phantoms(tmp_path, ["ward/b.nii"], tiny_bundle, broken=["broken.nii"])
    broken, good = lines_of(results)
    write_lines(results, [broken, good, *({**good, "scan": name} for name in NASTY)])
    return read_group(results).rows


def _read_csv(path: Path) -> list[dict[str, str]]:
    """By Python's own reader; strict refuses what RFC 4180 does not know."""
    text = path.read_bytes().decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def _value(cell: str, kind: str) -> object:
    """What a reader makes of a cell, with the guard against formulas taken off."""
    if cell == "":
        return None
    if kind == "text":
        return cell.removeprefix("'")
    return {"number": float, "count": int, "time": datetime.fromisoformat}[kind](cell)


def test_csv_comes_back_as_it_was(tmp_path: Path, rows: tuple[Row, ...]) -> None:
    write_csv(tmp_path / "scans.csv", rows)
    lines = _read_csv(tmp_path / "scans.csv")
    assert list(lines[0]) == [column.name for column in COLUMNS]
    assert [{column.name: _value(line[column.name], column.kind) for column in COLUMNS} for line in lines] == [
        dict(row) for row in rows
    ]
    assert len(lines) == 2 + len(NASTY)


def test_no_cell_of_the_csv_begins_as_a_formula_does(tmp_path: Path, rows: tuple[Row, ...]) -> None:
    write_csv(tmp_path / "scans.csv", rows)
    texts = {column.name for column in COLUMNS if column.kind == "text"}
    for line in _read_csv(tmp_path / "scans.csv"):
        assert not [
            cell for name, cell in line.items() if name in texts and cell.startswith(tuple("=+-@\t\r\n＝＋－＠"))
        ]


def test_texts_are_quoted_so_that_no_other_separator_begins_a_cell(tmp_path: Path, rows: tuple[Row, ...]) -> None:
    write_csv(tmp_path / "scans.csv", rows)
    assert '\r\n"a;=1,b.nii","ok",' in (tmp_path / "scans.csv").read_bytes().decode()


def test_what_is_missing_is_empty_in_csv_and_null_in_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_drawn_group(tmp_path / "results", [{"lungs_ml": (0.0, 0.0), "infection_ml": 0.0}])
    rows = read_group(tmp_path / "results").rows
    write_csv(tmp_path / "scans.csv", rows)
    write_parquet(tmp_path / "scans.parquet", rows)
    (line,) = _read_csv(tmp_path / "scans.csv")
    table = parquet.read_table(tmp_path / "scans.parquet")
    for name in ("infection_percent", "mean_infection_hu", "infection_low_ml", "error"):
        assert line[name] == ""
        assert table[name].null_count == 1
    assert (line["lung_ml"], table["lung_ml"].to_pylist()) == ("0.0", [0.0])
    assert b'""' not in (tmp_path / "scans.csv").read_bytes(), "an empty text would be no missing number to a database"


def test_parquet_is_typed_and_tells_units(tmp_path: Path, rows: tuple[Row, ...]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_parquet(tmp_path / "scans.parquet", rows)
    table = parquet.read_table(tmp_path / "scans.parquet")
    assert table.to_pylist() == [dict(row) for row in rows]
    schema = table.schema
    assert [str(schema.field(name).type) for name in ("scan", "lung_ml", "lesion_count", "finished")] == [
        "string",
        "double",
        "int64",
        "timestamp[ms, tz=UTC]",
    ]
    assert schema.field("lung_left_ml").metadata == {
        b"unit": b"mL",
        b"meaning": "Volume of lung ∪ infection, left lung".encode(),
    }
    assert schema.field("mean_infection_hu").metadata[b"unit"] == b"HU"
    about = json.loads(schema.metadata[b"covidseg"])
    assert (about["schema_version"], about["notice"]) == (1, "Research use only. Not a medical device.")


def test_another_reader_of_csv_has_the_same_table_as_parquet(tmp_path: Path, rows: tuple[Row, ...]) -> None:
    arrow_csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")
    write_csv(tmp_path / "scans.csv", rows)
    write_parquet(tmp_path / "scans.parquet", rows)
    table = parquet.read_table(tmp_path / "scans.parquet")
    read = arrow_csv.read_csv(
        tmp_path / "scans.csv",
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            column_types={field.name: field.type for field in table.schema}, strings_can_be_null=True
        ),
    )
    for name in table.column_names:
        from_csv = [text.removeprefix("'") if isinstance(text, str) else text for text in read[name].to_pylist()]
        assert from_csv == table[name].to_pylist(), name


def test_every_quantity_has_its_unit_in_its_name() -> None:
    endings = {"mL": "_ml", "%": "_percent", "HU": "_hu", "mm": "_mm", "s": "seconds"}
    for column in COLUMNS:
        if column.unit in endings:
            assert column.name.endswith(endings[column.unit]), column.name
        else:
            assert column.unit in ("", "voxels"), column.name
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)


def test_a_table_that_cannot_be_written_leaves_the_former_one(tmp_path: Path, rows: tuple[Row, ...]) -> None:
    path = tmp_path / "scans.csv"
    path.write_text("former")
    with pytest.raises(KeyError):
        write_csv(path, [rows[0], {}])  # the second row lacks every column
    assert path.read_text() == "former"
    with pytest.raises(OutputError, match="cannot be written"):
        write_csv(tmp_path / "nowhere" / "scans.csv", rows)
