"""Truths derived by hand; spacing is anisotropic throughout."""

import math

import numpy as np
import pytest

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.metrics import (
    compute_surface_distances,
    confusion_measures,
    dice,
    hausdorff_mm,
    normalised_surface_dice,
)

SPACING = (3.0, 2.0, 1.0)
EMPTY = np.zeros((8, 9, 10), bool)


def box(*slices):
    mask = EMPTY.copy()
    mask[slices] = True
    return mask


def test_dice_of_half_overlapping_boxes():
    assert dice(box(slice(0, 4)), box(slice(2, 6))) == 0.5


def test_dice_of_empty_masks():
    assert math.isnan(dice(EMPTY, EMPTY))
    assert dice(EMPTY, box(slice(0, 1))) == 0.0


def test_area_of_a_box_is_that_of_its_faces_but_for_edges():
    # One slab through the whole array along y and x would have two faces; a finite box has rounded edges.
    mask = np.zeros((20, 40, 40), bool)
    mask[5:15, 5:35, 5:35] = True
    distances = compute_surface_distances(mask, mask, (1.0, 1.0, 1.0))
    faces = 2 * 30 * 30 + 4 * 30 * 10
    assert distances.first_areas_mm2.sum() == pytest.approx(faces, rel=0.05)
    assert distances.first_areas_mm2.sum() <= faces


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 3.0), (1, 2.0), (2, 1.0)])
def test_two_boxes_one_voxel_apart_are_one_spacing_apart(axis, expected_mm):
    first = box(slice(2, 5), slice(2, 5), slice(2, 5))
    distances = compute_surface_distances(first, np.roll(first, 1, axis), SPACING)
    assert hausdorff_mm(distances) == expected_mm
    assert normalised_surface_dice(distances, expected_mm) == 1.0
    assert normalised_surface_dice(distances, expected_mm - 0.01) < 1.0


def test_one_empty_mask_is_infinitely_far():
    distances = compute_surface_distances(EMPTY, box(slice(2, 5)), SPACING)
    assert normalised_surface_dice(distances, 3.0) == 0.0
    assert hausdorff_mm(distances) == math.inf
    assert hausdorff_mm(distances, 95) == math.inf


def test_two_empty_masks_have_no_distance():
    distances = compute_surface_distances(EMPTY, EMPTY, SPACING)
    assert math.isnan(normalised_surface_dice(distances, 3.0))
    assert math.isnan(hausdorff_mm(distances))


def test_percentile_leaves_a_far_speck_out():
    first = np.zeros((10, 60, 60), bool)
    first[2:8, 2:40, 2:40] = True
    second = first.copy()
    second[4, 55, 55] = True
    distances = compute_surface_distances(first, second, (1.0, 1.0, 1.0))
    assert hausdorff_mm(distances) > 15
    assert hausdorff_mm(distances, 95) == 0.0


def test_confusion_of_eight_hand_counted_voxels():
    predicted = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool).reshape(2, 2, 2)
    truth = np.array([1, 1, 0, 1, 0, 0, 0, 0], bool).reshape(2, 2, 2)
    measures = confusion_measures(predicted, truth)  # TP 2, FP 1, FN 1, TN 4
    assert measures.sensitivity == pytest.approx(2 / 3)
    assert measures.specificity == pytest.approx(4 / 5)
    assert measures.precision == pytest.approx(2 / 3)
    assert measures.f1 == pytest.approx(dice(predicted, truth)) == pytest.approx(2 / 3)
    assert measures.accuracy == pytest.approx(6 / 8)
    assert measures.mcc == pytest.approx((2 * 4 - 1) / math.sqrt(3 * 3 * 5 * 5))


def test_different_shapes_are_refused():
    with pytest.raises(VolumeError, match="shapes"):
        dice(EMPTY, EMPTY[1:])
