"""Whatever is in a file that is called .nii or .nii.gz: it is read soundly or refused in a sentence."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hostile.attempts import attempt_scan_and_labels
from hostile.scans import HostileScan, hostile_scan
from hostile.watched import WatchedChild
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.volume_files import read_volume

CORPUS = Path(__file__).with_name("corpus")
_SEEDS = range(250)

hostile_scans = st.integers(0, 2**63).map(lambda seed: hostile_scan(Random(seed)))


@pytest.fixture(scope="module")
def child() -> Iterator[WatchedChild]:
    with WatchedChild() as child:
        yield child


@given(hostile_scans)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_hostile_scan_is_read_or_refused(scan: HostileScan) -> None:
    assume(not scan.is_bomb)  # those are read in a child
    with tempfile.TemporaryDirectory() as folder:
        attempt_scan_and_labels(scan.write(Path(folder)))


def test_none_crashes_hangs_or_takes_memory(child: WatchedChild) -> None:
    attempts = [child.attempt(f"scan {seed}") for seed in _SEEDS]
    assert [attempt for attempt in attempts if attempt.fault] == []
    assert {attempt.end for attempt in attempts} == {"read", "VolumeError"}
    assert any("bomb as promised" in attempt.changes for attempt in attempts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scan-far-from-its-origin.nii", "mm from its origin"),
        ("scan-wider-than-a-bore.nii.gz", r"\[1280, 1280, 1280\] mm long along its axes"),
    ],
)
def test_what_once_was_read_is_refused(name: str, message: str) -> None:
    with pytest.raises(VolumeError, match=message):
        read_volume(CORPUS / name)


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError):
        read_volume(tmp_path / ("long" * 100 + ".nii"))
