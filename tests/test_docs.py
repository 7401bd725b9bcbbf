"""The examples of README and docs run as they stand, and their links lead somewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from covidseg.cli import main
from covidseg_runtime.group_columns import COLUMNS
from covidseg_runtime.group_outliers import RULES

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "tests" / "data").rglob("*.md")))
# Those of docs/service.md need a service: tests/runtime/service/test_service_docs.py runs them.
EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    if page.name != "service.md"
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_a_python_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "tests" / "data" / "lidc_0001_crop_ct.nii.gz", tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {})
    assert (tmp_path / "labels.nii.gz").is_file()


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_of_the_repository_exist(page: Path) -> None:
    """`benchmarks/…`, `tests/…` and the like in running text."""
    named = re.findall(
        r"\b((?:benchmarks|tests|docs|train|runtime|export)/[\w./-]+\.\w+)", page.read_text(encoding="utf-8")
    )
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_commands_of_the_report_on_a_scan_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scan", "prior"):
        shutil.copy(ROOT / "tests" / "data" / "lidc_0001_crop_ct.nii.gz", tmp_path / f"{name}.nii.gz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    commands = re.findall(r"^covidseg (.*)$", (ROOT / "docs" / "report.md").read_text("utf-8"), re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        result = CliRunner().invoke(main, command.split())
        assert result.exit_code == 0, (command, result.output)
    for written in ("scan_covidseg.html", "page.html", "change.json"):
        assert (tmp_path / written).is_file(), written


def test_the_commands_of_the_report_on_a_group_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scans" / "ward").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "data" / "lidc_0001_crop_ct.nii.gz", tmp_path / "scans" / "ward" / "p7.nii.gz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    commands = re.findall(r"^covidseg (.*)$", (ROOT / "docs" / "group-report.md").read_text("utf-8"), re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        result = CliRunner().invoke(main, command.split())
        assert result.exit_code == 0, (command, result.output)
    for written in (
        "results/scans.csv",
        "results/scans.parquet",
        "results/ward/p7_covidseg.html",
        "reading/index.html",
    ):
        assert (tmp_path / written).is_file(), written


def test_every_column_of_the_table_of_a_group_is_documented_as_it_is() -> None:
    types = {"text": "text", "number": "float", "count": "integer", "time": "time"}
    page = (ROOT / "docs" / "group-report.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", page, re.MULTILINE) == [
        (column.name, types[column.kind], column.unit, column.meaning) for column in COLUMNS
    ]
    assert all(rule in " ".join(page.split()) for rule in RULES)
