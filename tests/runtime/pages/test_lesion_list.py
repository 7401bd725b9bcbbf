"""Each lesion has its own volume, density, side and a place within it."""

from __future__ import annotations

import numpy as np
import pytest
from phantom import spl_affine

from covidseg_runtime.pages.lesion_list import list_lesions
from covidseg_runtime.volume import Volume, to_orientation

AFFINE = spl_affine((3.0, 3.0, 3.0))


def _chest() -> tuple[Volume, np.ndarray]:
    """Two lungs of 20 voxels along x with a gap; x grows to the patient's left."""
    labels = np.zeros((20, 20, 44), np.uint8)
    labels[:, :, :20], labels[:, :, 24:] = 2, 1
    labels[10, 10, 5:9] = 3
    labels[2:4, 2:4, 30:32] = 3
    hu = np.full(labels.shape, -850, np.int16)
    hu[10, 10, 5:9] = (-100, -200, -300, -400)
    hu[2:4, 2:4, 30:32] = -500
    return Volume(hu, AFFINE), labels


def test_lesions_come_largest_first_with_what_they_are() -> None:
    scan, labels = _chest()
    larger, smaller = list_lesions(scan, labels, 20)
    assert (larger.volume_ml, smaller.volume_ml) == pytest.approx((8 * 0.027, 4 * 0.027))
    assert (larger.side, smaller.side) == ("left", "right")
    assert (larger.mean_hu, smaller.mean_hu) == (-500.0, -250.0)
    assert larger.share_percent == pytest.approx(200 / 3)
    # (z, y, x) = (10, 10, 6) or (10, 10, 7), the two middle ones.
    assert smaller.center_mm in {tuple((AFFINE @ (10, 10, x, 1))[:3].round(1)) for x in (6, 7)}


def test_no_more_are_listed_than_asked_for() -> None:
    scan, labels = _chest()
    (one,) = list_lesions(scan, labels, 1)
    assert one.side == "left"


def test_the_order_of_axes_changes_nothing() -> None:
    scan, labels = _chest()
    turned = to_orientation(Volume(labels, AFFINE), "LPS").voxels
    assert list_lesions(to_orientation(scan, "LPS"), turned, 20) == list_lesions(scan, labels, 20)


def test_the_centre_of_a_ring_lies_in_the_ring() -> None:
    labels = np.zeros((5, 9, 9), np.uint8)
    labels[2, 1:8, 1:8] = 3
    labels[2, 2:7, 2:7] = 1
    scan = Volume(np.full(labels.shape, -500, np.int16), AFFINE)
    (ring,) = list_lesions(scan, labels, 20)
    z, y, x, _ = np.rint(np.linalg.inv(AFFINE) @ (*ring.center_mm, 1.0)).astype(int)
    assert labels[z, y, x] == 3


def test_a_lesion_over_both_lungs_says_so_and_one_without_lungs_says_nothing() -> None:
    labels = np.zeros((10, 10, 20), np.uint8)
    labels[:, :, :10], labels[:, :, 10:] = 2, 1
    labels[5, 5, 2:18] = 3
    scan = Volume(np.full(labels.shape, -500, np.int16), AFFINE)
    assert list_lesions(scan, labels, 20)[0].side == "both"
    assert list_lesions(scan, np.where(labels == 3, labels, 0), 20)[0].side is None


def test_without_infection_there_is_none() -> None:
    scan, labels = _chest()
    assert list_lesions(scan, np.minimum(labels, 2), 20) == ()
