"""Lesions found by runs are those that labelling the whole grid finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from covidseg_runtime.lesions import Lesions

EVERYWHERE = np.ones((3, 3, 3), np.bool_)


@pytest.mark.parametrize("shape", [(9, 10, 11), (1, 30, 30), (12, 1, 9), (12, 9, 1), (1, 1, 40), (40, 1, 1)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.4, 1.0])
def test_the_same_voxels_hang_together(shape: tuple[int, int, int], share: float) -> None:
    labels = np.where(np.random.default_rng(0).random(shape) < share, np.uint8(3), np.uint8(1))
    components, count = ndimage.label(labels == 3, structure=EVERYWHERE)
    lesions = Lesions.of(labels, 3)
    assert lesions.count == count
    places = list(lesions.places(np.arange(count)))
    assert [len(z) for z, _, _ in places] == lesions.voxels.tolist()
    found = np.zeros(shape, np.int64)
    for index, place in enumerate(places, start=1):
        assert len(set(components[place].tolist())) == 1
        found[place] = index
    np.testing.assert_array_equal(found > 0, labels == 3)


@pytest.mark.parametrize(
    "step", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, -1), (1, -1, 0), (1, 1, 1), (1, -1, -1), (1, -1, 1)]
)
def test_neighbours_by_side_edge_or_corner_are_one_lesion(step: tuple[int, int, int]) -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[2, 2, 2] = labels[2 + step[0], 2 + step[1], 2 + step[2]] = 3
    assert Lesions.of(labels, 3).count == 1


def test_the_ends_of_rows_and_slices_are_no_neighbours() -> None:
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[0, 0, 4] = labels[0, 1, 0] = 3  # one row ends, the next begins
    labels[1, 3, 2] = labels[2, 0, 2] = 3  # one slice ends, the next begins
    assert Lesions.of(labels, 3).count == 4


def test_only_chosen_lesions_are_placed() -> None:
    labels = np.zeros((2, 3, 9), np.uint8)
    labels[0, 0, :2] = labels[0, 0, 4] = labels[1, 2, 6:] = 3
    lesions = Lesions.of(labels, 3)
    assert sorted(lesions.voxels.tolist()) == [1, 2, 3]
    ((z, y, x),) = lesions.places(np.flatnonzero(lesions.voxels == 3))
    assert (z.tolist(), y.tolist(), x.tolist()) == ([1, 1, 1], [2, 2, 2], [6, 7, 8])
