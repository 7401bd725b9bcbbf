"""The side of a lung is where it lies in the chest, however the lungs touch or whatever one of them lacks."""

from __future__ import annotations

import numpy as np
import pytest
from phantom import phantom_labels

from covidseg_runtime.lung_sides import label_sides, part_left_right

CUBE = (1.5, 1.5, 1.5)


def _either_side(labels: np.ndarray) -> np.ndarray:
    """The labels as a network gives them that knows no sides."""
    merged = labels.copy()
    merged[merged == 2] = 1
    return merged


@pytest.mark.parametrize("spacing_mm", [(2.0, 1.5, 1.5), (1.0, 0.75, 0.75), (5.0, 0.7, 0.7), (3.0, 3.0, 3.0)])
def test_two_separate_lungs_get_their_sides_voxel_for_voxel(spacing_mm: tuple[float, float, float]) -> None:
    labels = _either_side(phantom_labels())
    label_sides(labels, spacing_mm)
    np.testing.assert_array_equal(labels, phantom_labels())


def test_lungs_that_touch_are_parted_at_the_bridge() -> None:
    lungs = np.zeros((30, 30, 60), np.bool_)
    lungs[5:25, 5:25, 5:28] = True
    lungs[5:25, 5:25, 32:55] = True
    lungs[12:16, 10:14, 28:32] = True  # the anterior junction
    left, right = part_left_right(lungs, CUBE)
    np.testing.assert_array_equal(left | right, lungs)
    assert not (left & right).any()
    assert not left[:, :, :28].any()
    assert not right[:, :, 32:].any()


def test_the_larger_x_is_the_left_lung_although_it_is_the_smaller() -> None:
    lungs = np.zeros((20, 20, 40), np.bool_)
    lungs[2:18, 2:18, 2:20] = True
    lungs[6:14, 6:14, 26:36] = True
    left, right = part_left_right(lungs, CUBE)
    assert left.sum() == 8 * 8 * 10
    assert right.sum() == 16 * 16 * 18


def test_a_lung_in_an_upper_and_a_lower_piece_is_not_two_sides() -> None:
    lungs = np.zeros((40, 20, 60), np.bool_)
    lungs[2:18, 4:16, 4:16] = True  # right lung, parted by a dense lobe
    lungs[22:38, 4:16, 4:16] = True
    left, right = part_left_right(lungs, CUBE)
    assert not left.any()
    np.testing.assert_array_equal(right, lungs)


@pytest.mark.parametrize(("start", "side"), [(2, 2), (24, 1)])
def test_where_one_lung_is_missing_the_middle_of_the_scan_parts_them(start: int, side: int) -> None:
    labels = np.zeros((20, 20, 44), np.uint8)
    labels[4:16, 4:16, start : start + 16] = 1
    expected = labels * side
    label_sides(labels, (3.0, 1.5, 1.5))
    np.testing.assert_array_equal(labels, expected)


def test_no_lung_at_all_stays_background() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    label_sides(labels, CUBE)
    assert not labels.any()


def test_infection_keeps_its_label() -> None:
    labels = _either_side(phantom_labels())
    before = labels == 3
    label_sides(labels, (2.0, 1.5, 1.5))
    np.testing.assert_array_equal(labels == 3, before)


def test_a_speck_of_lung_far_from_the_others_goes_to_the_nearer_side() -> None:
    labels = _either_side(phantom_labels())
    labels[12, 14, 41] = 1  # one voxel, left of the left lung
    label_sides(labels, (2.0, 1.5, 1.5))
    assert labels[12, 14, 41] == 1
    labels[12, 14, 3] = 1
    label_sides(labels, (2.0, 1.5, 1.5))
    assert labels[12, 14, 3] == 2
