"""Spooled arrays are ordinary arrays whose memory is given back, and leave no file behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from phantom import phantom_hu

from covidseg_runtime.errors import OutputError
from covidseg_runtime.lung_box import find_lung_box
from covidseg_runtime.lung_sides import label_sides
from covidseg_runtime.measures import measure
from covidseg_runtime.postprocessing import remove_detached
from covidseg_runtime.scan_checks import check_lungs, check_scan
from covidseg_runtime.segment_settings import SegmentSettings
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.spooling import Spool, every_nth, planes, release, spooled_zeros, zeros
from covidseg_runtime.volume_files import read_volume


def resident_file_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0])


def test_values_stay_when_memory_is_given_back(tmp_path: Path) -> None:
    array = spooled_zeros((40, 512, 512), np.uint8, tmp_path)
    assert not array.any()
    before = resident_file_kib()
    for z, plane in enumerate(planes(array)):
        plane[...] = z + 1
    assert resident_file_kib() - before < 9 * 256, "no more than eight planes of 256 KiB stay"
    assert [int(plane.max()) for plane in planes(array)] == list(range(1, 41))
    assert list(tmp_path.iterdir()) == [], "the file has no name"


def test_views_of_a_spooled_array_give_its_memory_back(tmp_path: Path) -> None:
    array = spooled_zeros((16, 512, 512), np.int16, tmp_path)
    view = array.transpose(2, 1, 0)[::-1, 3:]
    array += 1
    before = resident_file_kib()
    release(view)
    assert before - resident_file_kib() > 7000
    assert view.min() == 1


def test_an_array_in_memory_passes_through(tmp_path: Path) -> None:
    array = np.arange(24).reshape(4, 3, 2)
    assert [plane.tolist() for plane in planes(array)] == array.tolist()


def test_only_large_arrays_are_spooled(tmp_path: Path) -> None:
    spool = Spool(tmp_path, from_mib=1)
    assert not isinstance(zeros((1023, 1024), np.uint8, spool), np.memmap)
    assert isinstance(zeros((1024, 1024), np.uint8, spool), np.memmap)
    assert not isinstance(zeros((1024, 1024), np.uint8, None), np.memmap)


def test_a_folder_without_room_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"has no room for .* MiB of working files"):
        spooled_zeros((2**20, 2**20, 2**10), np.uint8, tmp_path)
    with pytest.raises(OutputError, match="No such file or directory"):
        spooled_zeros((2, 2), np.uint8, tmp_path / "missing")


def test_a_spooled_scan_gets_the_same_labels(tiny_bundle: Path, phantom_scan: Path, tmp_path: Path) -> None:
    spool = Spool(tmp_path, from_mib=0)
    volume = read_volume(phantom_scan, spool=spool)
    assert isinstance(volume.voxels.base, np.memmap) or isinstance(volume.voxels, np.memmap)
    np.testing.assert_array_equal(volume.voxels, phantom_hu())
    with (
        Segmenter.open(str(tiny_bundle)) as in_memory,
        Segmenter.open(str(tiny_bundle), settings=SegmentSettings(spool=spool)) as spooled,
    ):
        expected, found = in_memory.segment(phantom_scan), spooled.segment(phantom_scan)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.measures == expected.measures


def test_every_nth_voxel_is_what_slicing_gives(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (9, 11, 13)).astype(np.int16)
    for steps in ((1, 1, 1), (2, 3, 4), (20, 20, 20)):
        sampled = every_nth(array, steps)
        assert np.array_equal(sampled, array[:: steps[0], :: steps[1], :: steps[2]])
        assert sampled.base is None
    assert every_nth(array[:0], (2, 2, 2)).shape == (0, 6, 7)


@pytest.mark.parametrize(
    "look",
    [
        lambda hu, labels: check_scan(hu, (5.0, 0.7, 0.7)),
        lambda hu, labels: find_lung_box(hu, (1.0, 0.7, 0.7)),
        lambda hu, labels: remove_detached(labels, (1.0, 0.7, 0.7)),
        lambda hu, labels: label_sides(labels, (1.0, 0.7, 0.7)),
        lambda hu, labels: measure(labels, hu, (1.0, 0.7, 0.7)),
        lambda hu, labels: check_lungs(labels, hu, (1.0, 0.7, 0.7), measure(labels, hu, (1.0, 0.7, 0.7))),
    ],
)
def test_whoever_looks_at_a_long_scan_gives_its_memory_back(tmp_path: Path, look: Callable[..., object]) -> None:
    hu, labels = (spooled_zeros((64, 512, 512), dtype, tmp_path) for dtype in (np.int16, np.uint8))
    for z, (plane, plane_labels) in enumerate(zip(planes(hu), planes(labels), strict=True)):
        plane[:] = np.random.default_rng(z).integers(-20, 60, (512, 1))
        plane[100:400, 60:220], plane[100:400, 290:450] = -820, -860
        if 4 <= z < 60:
            plane_labels[100:400, 60:220], plane_labels[100:400, 290:450] = 1, 2
            plane_labels[300:340, 300:340] = 3
    before = resident_file_kib()
    look(hu, labels)
    assert resident_file_kib() - before < 4 * 1024, "of 32 and 16 MiB"
