"""The table of a folder of results: what counts, what is told, and that nothing unknown becomes 0."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from group_results import INFECTION_ML, LUNG_ML, lines_of, run_folder, segment_phantoms, write_drawn_group, write_lines

from covidseg_runtime.bundle import sha256_of
from covidseg_runtime.errors import VolumeError
from covidseg_runtime.group_columns import COLUMNS
from covidseg_runtime.group_table import read_group

NAMES = ["a.nii.gz", "ward/b.nii"]


@pytest.fixture
def results(tmp_path: Path, tiny_bundle: Path) -> Path:
    """Two phantoms and a file that is no scan, segmented."""
    return segment_phantoms(tmp_path, NAMES, tiny_bundle, broken=["broken.nii"])


def _row(results: Path, scan: str = "a.nii.gz") -> dict:
    (row,) = [row for row in read_group(results).rows if row["scan"] == scan]
    return dict(row)


def test_every_scan_is_a_row_in_the_order_of_paths(results: Path) -> None:
    rows = read_group(results).rows
    assert [(row["scan"], row["status"]) for row in rows] == [
        ("a.nii.gz", "ok"),
        ("broken.nii", "failed"),
        ("ward/b.nii", "ok"),
    ]
    assert {tuple(row) for row in rows} == {tuple(column.name for column in COLUMNS)}


def test_a_row_holds_what_manifest_and_report_say(results: Path, tiny_bundle: Path) -> None:
    row, line = _row(results), lines_of(results)[0]
    assert row["lung_ml"] == pytest.approx(LUNG_ML)
    assert row["infection_ml"] == row["infection_left_ml"] == pytest.approx(INFECTION_ML)
    assert row["infection_right_ml"] == 0.0
    assert row["infection_percent"] == pytest.approx(100 * INFECTION_ML / LUNG_ML, abs=0.001)
    # The opacity has -300 HU, which is the first value that counts as consolidation.
    assert (row["ground_glass_ml"], row["consolidation_ml"]) == (0.0, pytest.approx(INFECTION_ML))
    assert (row["mean_infection_hu"], row["lesion_count"]) == (-300.0, 1)
    assert (row["shape_x"], row["shape_y"], row["shape_z"]) == (28, 36, 44)
    assert (row["spacing_x_mm"], row["spacing_y_mm"], row["spacing_z_mm"]) == (2.0, 1.5, 1.5)
    assert row["orientation"] == "SPL"
    assert (row["model"], row["precision"], row["quality"]) == ("tiny 1.2.3", "f32", "balanced")
    assert row["model_sha256"] == sha256_of(tiny_bundle / "bundle.json")
    assert row["min_lesion_ml"] == 0.05
    assert row["finished"] == datetime.fromisoformat(line["finished"])
    assert row["finished"].tzinfo is UTC
    assert row["seconds"] == line["seconds"]
    assert row["input_sha256"] == line["input"]["sha256"]
    assert (row["report_check"], row["labels_check"]) == ("as recorded", "as recorded")
    assert row["warning_count"] == len(line["warnings"])


def test_a_scan_that_failed_has_its_sentence_and_no_number(results: Path) -> None:
    row = _row(results, "broken.nii")
    assert row["error"] == lines_of(results)[1]["error"]
    assert row["exit_code"] == 3
    known = {"scan", "status", "error", "exit_code", "model", "model_sha256", "engine", "precision", "quality"}
    known |= {"min_lesion_ml", "finished"}
    assert {name for name, value in row.items() if value is not None} == known


def test_numbers_without_meaning_stay_empty(tmp_path: Path) -> None:
    write_drawn_group(tmp_path / "results", [{"lungs_ml": (0.0, 0.0), "infection_ml": 0.0}])
    row = _row(tmp_path / "results", "s00.nii")
    assert row["lung_ml"] == 0.0
    assert row["infection_percent"] is None
    assert row["mean_infection_hu"] is None
    assert row["infection_low_ml"] is None
    assert row["window_low_hu"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "12", True, [1.0], 10**400])
def test_what_is_no_number_is_none(results: Path, value: object) -> None:
    lines = lines_of(results)
    lines[0]["seconds"] = value
    write_lines(results, lines)
    assert _row(results)["seconds"] is None


# Which line counts


def test_of_a_scan_the_last_line_counts(results: Path) -> None:
    first, *others = lines_of(results)
    write_lines(results, [first, *others, {**first, "seconds": 77.0}])
    assert _row(results)["seconds"] == 77.0
    assert len(read_group(results).rows) == 3


def test_a_scan_that_failed_when_it_was_done_again_is_a_failed_one(
    tmp_path: Path, results: Path, tiny_bundle: Path
) -> None:
    (tmp_path / "scans" / "a.nii.gz").write_bytes(b"no scan any more")
    run_folder(tmp_path, tiny_bundle)
    assert _row(results)["status"] == "failed"
    assert _row(results)["infection_ml"] is None


@pytest.mark.parametrize("name", ["manifest.part-0-of-2.jsonl", "manifest-older.jsonl"])
def test_of_several_manifests_the_youngest_line_counts(results: Path, name: str) -> None:
    first = lines_of(results)[0]
    write_lines(results, [{**first, "seconds": 1.25, "finished": "2020-01-01T00:00:00+00:00"}], name)
    assert _row(results)["seconds"] == first["seconds"]
    write_lines(results, [{**first, "seconds": 1.25, "finished": "2099-01-01T00:00:00+00:00"}], name)
    assert _row(results)["seconds"] == 1.25
    assert read_group(results).manifests == tuple(sorted([name, "manifest.jsonl"]))


@pytest.mark.parametrize(
    "line", [b'{"scan": "a.nii.gz", "status": "o', b"null", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"scan": "a.nii"}']
)
def test_lines_that_are_no_record_are_passed_over_and_counted(results: Path, line: bytes) -> None:
    before = read_group(results)
    manifest = results / "manifest.jsonl"
    manifest.write_bytes(line + b"\n" + manifest.read_bytes() + line)
    after = read_group(results)
    assert after.rows == before.rows
    assert (before.passed_over, after.passed_over) == (0, 2)


# What was altered since


def test_of_a_report_that_was_altered_no_number_is_taken(results: Path) -> None:
    path = results / "a_covidseg.json"
    report = json.loads(path.read_text())
    report["measures"]["infection_volume_ml"]["whole"] = 99.0
    path.write_text(json.dumps(report))
    row = _row(results)
    assert row["report_check"] == "altered"
    assert row["infection_ml"] == pytest.approx(INFECTION_ML), "the manifest's"
    assert row["lesion_count"] is None
    assert "report was altered" in row["outlier"]


@pytest.mark.parametrize("content", [b"", b"no JSON", b"[]", b"[" * 100_000])
def test_a_report_that_is_none_is_an_altered_one(results: Path, content: bytes) -> None:
    (results / "a_covidseg.json").write_bytes(content)
    assert _row(results)["report_check"] == "altered"


def test_a_missing_report_is_told(results: Path) -> None:
    (results / "a_covidseg.json").unlink()
    row = _row(results)
    assert row["report_check"] == "missing"
    assert (row["infection_ml"], row["infection_left_ml"]) == (pytest.approx(INFECTION_ML), None)


def test_a_label_map_that_a_person_corrected_is_told(results: Path) -> None:
    path = results / "a_covidseg.nii.gz"
    path.write_bytes(b"by hand")
    _make_younger(path)
    assert _row(results)["labels_check"] == "altered"
    path.unlink()
    assert _row(results)["labels_check"] == "missing"


def test_a_line_that_tells_no_time_leaves_the_label_map_to_its_hash(results: Path) -> None:
    lines = lines_of(results)
    write_lines(results, [{**line, "finished": "yesterday", "error": ["odd"]} for line in lines])
    row = _row(results)
    assert (row["finished"], row["labels_check"]) == (None, "as recorded")
    (results / "a_covidseg.nii.gz").write_bytes(b"by hand")
    assert _row(results)["labels_check"] == "altered"


def test_a_folder_that_was_copied_is_as_recorded(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(results, copy, copy_function=shutil.copyfile)
    for path in copy.rglob("*.nii.gz"):
        _make_younger(path)
    assert [row["labels_check"] for row in read_group(copy).rows] == ["as recorded", None, "as recorded"]


def _make_younger(path: Path) -> None:
    later = path.stat().st_mtime + 3600
    os.utime(path, (later, later))


# What is refused


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"holds no manifest.jsonl; give the folder of results"):
        read_group(tmp_path)


def test_a_manifest_of_a_later_covidseg_is_refused(results: Path) -> None:
    lines = lines_of(results)
    write_lines(results, [*lines, {"schema_version": 2, "something": "else"}])
    with pytest.raises(
        VolumeError, match=r"manifest.jsonl has schema version 2, this covidseg knows 1 at most; update"
    ):
        read_group(results)


def test_a_report_of_a_later_covidseg_is_refused(results: Path) -> None:
    (results / "a_covidseg.json").write_text('{"schema_version": 2}')
    with pytest.raises(VolumeError, match=r"a_covidseg.json has schema version 2"):
        read_group(results)


@pytest.mark.parametrize("file", ["../outside.json", "{folder}/outside.json", "ward/../../outside.json"])
def test_no_file_outside_of_the_folder_is_read(results: Path, tmp_path: Path, file: str) -> None:
    outside = tmp_path / "outside.json"
    shutil.copy(results / "a_covidseg.json", outside)
    lines = lines_of(results)
    lines[0]["outputs"]["report"] = {"file": file.format(folder=tmp_path), "sha256": sha256_of(outside)}
    write_lines(results, lines)
    assert _row(results)["report_check"] == "missing"
