"""Many scans: in order, read ahead within bounds, none stopped by another, and nothing left behind."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path

import nibabel
import numpy as np
import pytest
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, pointwise_logits, spl_affine

from covidseg_runtime import many_scans
from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.errors import EngineError, SegmentationCancelled, SettingsError, VolumeError
from covidseg_runtime.many_scans import FailedScan, SegmentedScan, segment_many
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.spooling import Spool

LONGEST_WAIT_S = 20


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    """Five phantoms, the n-th shifted by n voxels towards the front."""
    paths = [tmp_path / f"scan{number}.nii" for number in range(5)]
    for number, path in enumerate(paths):
        shifted = np.roll(phantom_hu(), -number, axis=1)
        nibabel.save(nibabel.Nifti1Image(shifted, spl_affine(PHANTOM_SPACING_MM)), path)
    return paths


@pytest.fixture
def segmenter(tiny_bundle: Path) -> Segmenter:
    return _segmenter(tiny_bundle, pointwise_logits)


def _segmenter(bundle: Path, function) -> Segmenter:
    return Segmenter(load_bundle(bundle), PointwiseEngine(function))


def _own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("covidseg")]


def _watch_reading(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """Weak references to every volume's voxels that is read from now on."""
    read, original = [], many_scans.read_volume

    def watched(path: Path, spool: Spool | None, window: tuple[float, float] | None):
        volume = original(path, spool=spool, window=window)
        read.append(weakref.ref(volume.voxels))
        return volume

    monkeypatch.setattr(many_scans, "read_volume", watched)
    return read


@pytest.mark.parametrize("prefetch", [0, 1, 3, 9])
def test_every_scan_gets_its_own_labels_in_order(segmenter: Segmenter, scans: list[Path], prefetch: int) -> None:
    results = list(segment_many(segmenter, scans, prefetch=prefetch))
    assert [result.path for result in results] == scans
    for number, result in enumerate(results):
        assert isinstance(result, SegmentedScan)
        np.testing.assert_array_equal(result.segmentation.labels, np.roll(phantom_labels(), -number, axis=1))
        np.testing.assert_array_equal(result.volume.voxels, np.roll(phantom_hu(), -number, axis=1))


def test_a_scan_that_fails_comes_as_its_error_and_the_others_go_on(segmenter: Segmenter, scans: list[Path]) -> None:
    scans[1].write_bytes(b"no scan")
    scans[3].unlink()
    results = list(segment_many(segmenter, scans))
    assert [isinstance(result, FailedScan) for result in results] == [False, True, False, True, False]
    assert all(isinstance(result.error, VolumeError) for result in results if isinstance(result, FailedScan))
    assert "not a single-file NIfTI" in str(results[1].error)
    assert "is not a file" in str(results[3].error)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (EngineError("the engine fails"), "the engine fails"),
        (MemoryError(), "scan1.nii: there is not enough memory for this scan"),
        (IndexError("a fault of ours"), "scan1.nii: unexpected IndexError: a fault of ours"),
    ],
)
def test_whatever_one_scan_meets_is_its_own(
    tiny_bundle: Path, scans: list[Path], fault: Exception, message: str
) -> None:
    faults: list[Exception] = []

    def fail_in_the_second(tiles):
        if faults:
            raise faults.pop()
        return pointwise_logits(tiles)

    results = segment_many(_segmenter(tiny_bundle, fail_in_the_second), scans, prefetch=0)
    assert isinstance(next(results), SegmentedScan)
    faults.append(fault)
    second, *rest = results
    assert isinstance(second, FailedScan)
    assert str(second.error) == message
    if isinstance(fault, IndexError):
        assert "in fail_in_the_second" in second.error.__notes__[0]
    assert [type(result) for result in rest] == [SegmentedScan] * 3


def test_the_next_scan_is_read_while_the_network_works(
    tiny_bundle: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = _watch_reading(monkeypatch)

    def wait_for_the_second(tiles):
        deadline = time.monotonic() + LONGEST_WAIT_S
        while len(read) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(read) >= 2
        return pointwise_logits(tiles)

    results = segment_many(_segmenter(tiny_bundle, wait_for_the_second), scans)
    assert isinstance(next(results), SegmentedScan)
    results.close()


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_memory_is_bounded_by_prefetch(
    tiny_bundle: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    read = _watch_reading(monkeypatch)
    alive: list[int] = []

    def count(tiles):
        alive.append(sum(reference() is not None for reference in read))
        return pointwise_logits(tiles)

    for result in segment_many(_segmenter(tiny_bundle, count), scans, prefetch=prefetch):
        assert isinstance(result, SegmentedScan)
    assert max(alive) <= prefetch + 2


def test_errors_keep_no_scan_alive(tiny_bundle: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read = _watch_reading(monkeypatch)

    def fail(tiles):
        raise EngineError("it fails") from ValueError("inside")

    kept = list(segment_many(_segmenter(tiny_bundle, fail), scans))
    gc.collect()
    assert len(kept) == len(read) == 5
    assert [reference() for reference in read] == [None] * 5


def test_closing_early_leaves_no_thread(segmenter: Segmenter, scans: list[Path]) -> None:
    results = segment_many(segmenter, scans, prefetch=3)
    next(results)
    assert _own_threads()
    results.close()
    assert not _own_threads()


def test_a_generator_that_nobody_starts_leaves_no_thread(segmenter: Segmenter, scans: list[Path]) -> None:
    segment_many(segmenter, scans)
    assert not _own_threads()


def test_cancelling_ends_within_a_tile_and_leaves_no_thread(tiny_bundle: Path, scans: list[Path]) -> None:
    cancel = threading.Event()
    tiles_seen: list[int] = []

    def cancel_at_the_second_tile(tiles):
        tiles_seen.append(len(tiles))
        if len(tiles_seen) == 2:
            cancel.set()
        return pointwise_logits(tiles)

    with pytest.raises(SegmentationCancelled):
        next(segment_many(_segmenter(tiny_bundle, cancel_at_the_second_tile), scans, cancel=cancel))
    assert len(tiles_seen) == 2
    assert not _own_threads()


def test_cancelling_while_a_scan_is_read_begins_no_other(
    segmenter: Segmenter, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, asked = threading.Event(), []

    def read_slowly(path: Path, spool: Spool | None, window: tuple[float, float] | None):
        asked.append(path)
        cancel.set()
        time.sleep(0.3)
        raise VolumeError("too late")

    monkeypatch.setattr(many_scans, "read_volume", read_slowly)
    with pytest.raises(SegmentationCancelled, match=r"before scan0\.nii was segmented"):
        next(segment_many(segmenter, scans, prefetch=2, cancel=cancel))
    assert asked == scans[:1]


def test_a_negative_prefetch_is_refused_at_once(segmenter: Segmenter, scans: list[Path]) -> None:
    with pytest.raises(SettingsError, match="prefetch is -1"):
        segment_many(segmenter, scans, prefetch=-1)
