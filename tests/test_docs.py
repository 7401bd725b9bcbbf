"""The examples of README and docs run as they stand, and their links lead somewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

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
