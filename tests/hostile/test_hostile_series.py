"""Whatever is in the files of a DICOM series: it is read soundly or refused in a sentence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hostile.attempts import attempt_series
from hostile.series import SLICES, sound_series
from hostile.watched import WatchedChild
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

_SEEDS = range(150)


@pytest.fixture(scope="module")
def child() -> Iterator[WatchedChild]:
    with WatchedChild() as child:
        yield child


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_without_a_change_it_is_read(tmp_path, syntax) -> None:
    for k in range(SLICES):
        (tmp_path / str(k)).write_bytes(sound_series(syntax)[k])
    assert attempt_series(tmp_path) == "read"


def test_none_crashes_hangs_or_takes_memory(child: WatchedChild) -> None:
    attempts = [child.attempt(f"series {seed}") for seed in _SEEDS]
    assert [attempt for attempt in attempts if attempt.fault] == []
    assert {attempt.end for attempt in attempts} == {"read", "VolumeError"}
