"""Lesions one by one: where each lies in the patient, how large it is, in which lung, and in what order."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from covidseg_runtime.pages.lesion_list import list_lesions
from covidseg_runtime.pages.scan_page import slice_from_feet
from covidseg_runtime.volume import Volume, to_orientation

SPACING_MM = (3.0, 4.0, 5.0)  # a voxel has 0.06 mL
ORIGIN_MM = (-30.0, 12.0, -300.0)


def _volume(voxels: NDArray[np.generic]) -> Volume:
    affine = np.diag((*SPACING_MM, 1.0))
    affine[:3, 3] = ORIGIN_MM
    return Volume(voxels, affine)


@pytest.fixture
def labels() -> NDArray[np.uint8]:
    """(X, Y, Z) in RAS, so the right lung has the higher x: two lungs, and three lesions of 1, 5 and 9 voxels."""
    labels = np.zeros((20, 14, 10), np.uint8)
    labels[2:8, 2:12, 1:9] = 1
    labels[12:18, 2:12, 1:9] = 2
    labels[4, 4, 4] = 3
    labels[13:18, 6, 5] = 3
    labels[3:6, 7:10, 6] = 3
    return labels


def _hu(labels: NDArray[np.uint8]) -> NDArray[np.int16]:
    hu = np.full(labels.shape, -800, np.int16)
    hu[labels == 3] = -500
    hu[15, 6, 5] = 0  # one of the five: their mean is -400
    return hu


def test_the_largest_comes_first_with_its_volume_share_density_and_lung(labels: NDArray[np.uint8]) -> None:
    lesions = list_lesions(_volume(_hu(labels)), labels, 20)
    assert [lesion.volume_ml for lesion in lesions] == pytest.approx([0.54, 0.30, 0.06])
    assert [lesion.share_percent for lesion in lesions] == pytest.approx([60.0, 100 / 3, 100 / 15])
    assert [lesion.mean_hu for lesion in lesions] == pytest.approx([-500, -400, -500])
    assert [lesion.side for lesion in lesions] == ["left", "right", "left"]


def test_the_centre_is_in_mm_of_the_patient(labels: NDArray[np.uint8]) -> None:
    lesions = list_lesions(_volume(_hu(labels)), labels, 20)
    # Voxels (4, 8, 6), (15, 6, 5) and (4, 4, 4), times the spacing, plus the origin.
    assert [lesion.center_mm for lesion in lesions] == [(-18, 44, -270), (15, 36, -275), (-18, 28, -280)]


@pytest.mark.parametrize("orientation", ["LPS", "SPL", "PIR"])
def test_the_order_of_the_files_axes_changes_nothing(labels: NDArray[np.uint8], orientation: str) -> None:
    turned = to_orientation(_volume(_hu(labels)), orientation)
    turned_labels = to_orientation(_volume(labels), orientation).voxels
    assert list_lesions(turned, turned_labels, 20) == list_lesions(_volume(_hu(labels)), labels, 20)


def test_the_centre_of_a_hollow_lesion_lies_within_it() -> None:
    labels = np.zeros((20, 14, 10), np.uint8)
    labels[4:9, 4:9, 5] = 3
    labels[5:8, 5:8, 5] = 0  # a ring; its centre of mass is voxel (6, 6, 5)
    (lesion,) = list_lesions(_volume(np.zeros(labels.shape, np.int16)), labels, 20)
    i, j, k = np.rint((np.array(lesion.center_mm) - ORIGIN_MM) / SPACING_MM).astype(int)
    assert labels[i, j, k] == 3
    # The nearest of the ring are the middles of the sides along x: 6 mm, against 8 mm along y.
    assert abs(i - 6) == 2
    assert (j, k) == (6, 5)


def test_only_so_many_are_listed_as_asked_for(labels: NDArray[np.uint8]) -> None:
    lesions = list_lesions(_volume(_hu(labels)), labels, 2)
    assert [lesion.volume_ml for lesion in lesions] == pytest.approx([0.54, 0.30])
    assert sum(lesion.share_percent for lesion in lesions) < 100  # of all infection, listed or not


def test_voxels_that_touch_at_a_corner_are_one_lesion() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[2, 2, 2] = labels[3, 3, 3] = 3
    assert len(list_lesions(_volume(np.zeros(labels.shape, np.int16)), labels, 20)) == 1
    labels[3, 3, 3], labels[4, 4, 4] = 0, 3
    assert len(list_lesions(_volume(np.zeros(labels.shape, np.int16)), labels, 20)) == 2


def test_a_lesion_that_reaches_into_both_lungs_is_of_both() -> None:
    labels = np.zeros((20, 14, 10), np.uint8)
    labels[2:10, 2:12, 1:9] = 1
    labels[10:18, 2:12, 1:9] = 2
    labels[6:14, 6, 5] = 3
    (lesion,) = list_lesions(_volume(np.zeros(labels.shape, np.int16)), labels, 20)
    assert lesion.side == "both"


def test_without_lungs_no_side_is_told_and_without_infection_no_lesion() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    volume = _volume(np.zeros(labels.shape, np.int16))
    assert list_lesions(volume, labels, 20) == ()
    labels[2, 2, 2] = 3
    (lesion,) = list_lesions(volume, labels, 20)
    assert lesion.side is None


def test_a_slice_is_counted_from_the_feet_whatever_the_order_of_the_file() -> None:
    """Four slices 5 mm apart, the lowest at z = -10 mm: 4.9 mm lies nearest to the fourth."""
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[2, 3] = -10.0
    upwards = Volume(np.zeros((3, 3, 4), np.int16), affine)
    turned = affine.copy()
    turned[2, 2], turned[2, 3] = -5.0, 5.0
    downwards = Volume(np.zeros((3, 3, 4), np.int16), turned)
    for volume in (upwards, downwards):
        assert slice_from_feet(volume, (0.0, 0.0, 4.9)) == "4 of 4"
        assert slice_from_feet(volume, (0.0, 0.0, -7.6)) == "1 of 4"
        assert slice_from_feet(volume, (0.0, 0.0, 40.0)) == "4 of 4"
