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
    measure_case,
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


def test_a_case_is_measured_by_every_measure():
    predicted, truth = box(slice(2, 5), slice(2, 5), slice(2, 5)), box(slice(2, 5), slice(2, 5), slice(3, 6))
    measures = measure_case(predicted, truth, SPACING, tolerance_mm=1.0)
    # Moved by one voxel of 1 mm: 18 of 27 voxels of 6 mm³ are common.
    assert measures.dsc == measures.f1 == measures.sensitivity == measures.precision == 18 / 27
    assert measures.nsd == 1.0
    assert measures.hausdorff95_mm == 1.0
    assert measures.specificity == (720 - 36) / (720 - 27)
    assert measures.accuracy == (720 - 18) / 720
    assert measures.mcc == pytest.approx((18 * 684 - 9 * 9) / (27 * 693))
    assert measures.predicted_ml == measures.reference_ml == pytest.approx(27 * 0.006)
    assert measures.volume_error_ml == 0


def test_a_case_with_two_empty_masks_has_no_overlap_and_no_distance():
    measures = measure_case(EMPTY, EMPTY, SPACING, tolerance_mm=3.0)
    undefined = ("dsc", "nsd", "hausdorff95_mm", "sensitivity", "precision", "f1", "mcc")
    assert all(math.isnan(getattr(measures, name)) for name in undefined)
    assert measures.specificity == measures.accuracy == 1.0
    assert measures.volume_error_ml == 0


def test_a_missed_lesion_scores_nothing_and_is_infinitely_far():
    lesion = box(slice(2, 4), slice(2, 4), slice(2, 4))
    measures = measure_case(EMPTY, lesion, SPACING, tolerance_mm=3.0)
    assert measures.dsc == measures.nsd == measures.f1 == measures.sensitivity == 0.0
    assert measures.hausdorff95_mm == math.inf
    assert math.isnan(measures.precision)
    assert math.isnan(measures.mcc)
    assert measures.specificity == 1.0
    assert measures.accuracy == (720 - 8) / 720
    assert measures.volume_error_ml == pytest.approx(-8 * 0.006)


def test_a_lesion_where_there_is_none_scores_nothing_and_is_infinitely_far():
    lesion = box(slice(2, 4), slice(2, 4), slice(2, 4))
    measures = measure_case(lesion, EMPTY, SPACING, tolerance_mm=3.0)
    assert measures.dsc == measures.nsd == measures.f1 == measures.precision == 0.0
    assert measures.hausdorff95_mm == math.inf
    assert math.isnan(measures.sensitivity)
    assert math.isnan(measures.mcc)
    assert measures.specificity == (720 - 8) / 720
    assert measures.volume_error_ml == pytest.approx(8 * 0.006)


def test_a_mask_at_the_edge_of_the_scan_has_a_border_there():
    whole = np.ones((4, 4, 4), bool)
    distances = compute_surface_distances(whole, whole, (1.0, 1.0, 1.0))
    # Six faces of 4 x 4 cells, less what the bevelled edges and corners save.
    assert 0.8 * 6 * 16 < distances.first_areas_mm2.sum() < 6 * 16


def test_different_shapes_are_refused():
    with pytest.raises(VolumeError, match="shapes"):
        dice(EMPTY, EMPTY[1:])
