"""What hangs together with no lung goes, whatever hangs together with one stays."""

from __future__ import annotations

import numpy as np
import pytest
from phantom import phantom_labels

from covidseg_runtime.postprocessing import remove_detached

SPACING_MM = (2.0, 1.5, 1.5)
VOXEL_ML = 2.0 * 1.5 * 1.5 / 1000


def test_two_lungs_and_what_is_infected_in_them_stay() -> None:
    labels = phantom_labels()
    assert remove_detached(labels, SPACING_MM) == 0
    np.testing.assert_array_equal(labels, phantom_labels())


@pytest.mark.parametrize("label", [1, 2, 3])
def test_a_piece_apart_goes_and_its_infection_is_told(label: int) -> None:
    labels = phantom_labels()
    labels[4:8, 31:35, 20:24] = label
    assert remove_detached(labels, SPACING_MM) == pytest.approx(4 * 4 * 4 * VOXEL_ML if label == 3 else 0)
    np.testing.assert_array_equal(labels, phantom_labels())


def test_a_lung_that_is_wholly_infected_stays() -> None:
    labels = phantom_labels()
    labels[labels == 1] = 3
    expected = labels.copy()
    assert remove_detached(labels, SPACING_MM) == 0
    np.testing.assert_array_equal(labels, expected)


def test_an_infection_at_the_rim_of_a_lung_stays() -> None:
    labels = phantom_labels()
    labels[10:14, 28:31, 28:34] = 3  # grown into the chest wall, as far as the network is concerned
    expected = labels.copy()
    remove_detached(labels, SPACING_MM)
    np.testing.assert_array_equal(labels, expected)


def test_a_lung_a_tenth_of_the_other_stays_and_a_smaller_piece_goes() -> None:
    labels = np.zeros((40, 40, 80), np.uint8)
    labels[:, :, :40] = 2  # 64,000 voxels
    labels[10:30, 10:30, 50:66] = 1  # 6,400
    labels[0:8, 0:8, 70:80] = 1  # 640
    remove_detached(labels, (3.0, 3.0, 3.0))
    assert np.bincount(labels.ravel(), minlength=3)[1:].tolist() == [6400, 64000]


@pytest.mark.parametrize(
    ("place", "stays"),
    [
        ((slice(30, 40), slice(10, 20), slice(10, 20)), True),  # the apex of a lung, cut off from it
        ((slice(34, 40), slice(10, 18), slice(10, 18)), True),  # 10.4 mL
        ((slice(34, 40), slice(10, 17), slice(10, 18)), False),  # 9.1 mL
        ((slice(0, 10), slice(10, 20), slice(10, 20)), False),  # gas of the bowel, under a lung
        ((slice(30, 40), slice(10, 20), slice(36, 44)), True),  # between the lungs
        ((slice(30, 40), slice(32, 40), slice(10, 20)), False),  # behind them
        ((slice(38, 48), slice(10, 20), slice(10, 20)), False),  # in the neck
    ],
)
def test_a_piece_cut_off_stays_in_the_upper_half_of_the_chest(
    place: tuple[slice, slice, slice], *, stays: bool
) -> None:
    labels = np.zeros((50, 40, 80), np.uint8)
    labels[12:28, 0:30, 4:30] = 2
    labels[0:40, 0:30, 50:76] = 1
    expected = labels.copy()
    labels[place] = 3
    if stays:
        expected[place] = 3
    cleared_ml = remove_detached(labels, (3.0, 3.0, 3.0))
    np.testing.assert_array_equal(labels, expected)
    assert (cleared_ml == 0) == stays


def test_an_empty_map_stays_empty() -> None:
    labels = np.zeros((5, 6, 7), np.uint8)
    assert remove_detached(labels, SPACING_MM) == 0
    assert not labels.any()
