"""A chest is found again where it was moved to; drawn (simulated) chests, whose lungs are known."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_chest import SPACING_MM, drawn_chest
from follow_up_pairs import Move, in_orientation, lidc_crop, moved
from numpy.testing import assert_allclose, assert_array_equal

from covidseg_runtime.follow_up.coarse_chest import GRID_MM, CoarseChest
from covidseg_runtime.follow_up.labelled_scan import LabelledScan
from covidseg_runtime.follow_up.placement import apply_affine
from covidseg_runtime.follow_up.registration import register
from covidseg_runtime.volume import Volume

MOVE = Move(shift_mm=(12.0, -9.0, 15.0), degrees=(4.0, -3.0, 5.0))


def chest() -> LabelledScan:
    hu, left, right, *_ = drawn_chest()
    affine = np.array([[0, 0, -SPACING_MM, 160], [0, -SPACING_MM, 0, 120], [SPACING_MM, 0, 0, -500], [0, 0, 0, 1.0]])
    return LabelledScan(Volume(hu, affine), (left + 2 * right).astype(np.uint8), "drawn chest")


def lung_points(scan: LabelledScan) -> np.ndarray:
    labels = scan.turned_labels
    return apply_affine(labels.affine, np.argwhere(labels.voxels > 0)[::97])


def truth(scan: LabelledScan, move: Move) -> np.ndarray:
    """Where points of the moved scan were: `moved` turns about the middle of its grid."""
    affine, shape = scan.turned.affine, np.array(scan.turned.shape)
    return move.matrix(affine[:3, :3] @ (shape / 2) + affine[:3, 3])


@pytest.mark.parametrize("move", [MOVE, Move(scale=1.1), Move(shift_mm=(0.0, 0.0, 80.0))])
def test_a_moved_chest_is_brought_back(move):
    current = moved(chest(), move, (3.0, 3.0, 3.0))
    registration = register(CoarseChest.of(chest()), CoarseChest.of(current))
    points = lung_points(current)
    error_mm = np.linalg.norm(
        registration.placement.to_prior(points) - apply_affine(truth(current, move), points), axis=1
    )
    # Ellipsoids without vessels: a small turn hardly changes them.
    assert error_mm.mean() < 2.5
    assert registration.lung_dice > 0.97


def test_a_chest_lies_on_itself():
    registration = register(CoarseChest.of(chest()), CoarseChest.of(chest()))
    points = lung_points(chest())
    assert_allclose(registration.placement.to_prior(points), points, atol=1e-3)
    assert registration.lung_dice == registration.deformed_lung_dice == 1.0
    assert_allclose(registration.translation_mm, 0.0, atol=1e-3)


def test_the_same_scans_give_the_same_numbers():
    pair = CoarseChest.of(chest()), CoarseChest.of(moved(chest(), MOVE, (5.0, 3.0, 3.0)))
    first, second = register(*pair), register(*pair)
    assert first.describe() == second.describe()
    assert_array_equal(first.placement.displacement_mm, second.placement.displacement_mm)


@pytest.mark.parametrize("orientation", ["RAI", "PSR"])
def test_the_order_of_the_axes_changes_nothing(orientation):
    pair = chest(), moved(chest(), MOVE, (3.0, 3.0, 3.0))
    usual = register(*map(CoarseChest.of, pair))
    turned = register(*(CoarseChest.of(in_orientation(scan, orientation)) for scan in pair))
    points = lung_points(pair[1])
    assert_allclose(turned.placement.to_prior(points), usual.placement.to_prior(points), atol=1.0)


def test_slices_of_a_tilted_gantry_are_brought_together():
    """A real scan on a sheared grid: slices lie 0.3 mm farther back for each mm towards the head."""
    scan = lidc_crop()
    affine = scan.volume.affine.copy()
    affine[1, 0] -= 0.3 * affine[2, 0]
    tilted = LabelledScan(Volume(scan.volume.voxels, affine), scan.labels, "tilted")
    registration = register(CoarseChest.of(scan), CoarseChest.of(tilted))
    points = lung_points(tilted)
    back = points + np.outer(0.3 * (points[:, 2] - affine[2, 3]), (0, 1, 0))
    assert np.linalg.norm(registration.placement.to_prior(points) - back, axis=1).mean() < 1.5


def test_a_cut_scan_is_laid_where_it_belongs():
    """The upper half alone; its middle lies 5 cm above that of the whole lungs."""
    affine = chest().volume.affine.copy()
    affine[:3, 3] += affine[:3, 0] * 32
    upper = LabelledScan(Volume(chest().volume.voxels[32:], affine), chest().labels[32:], "upper half")
    registration = register(CoarseChest.of(upper), CoarseChest.of(chest()))
    points = lung_points(upper)
    error_mm = np.linalg.norm(registration.placement.to_prior(points) - points, axis=1)
    assert error_mm.mean() < 2.0
    assert 0.4 < registration.share_in_prior < 0.6
    assert registration.share_in_current > 0.98


def test_infection_that_came_does_not_pull():
    """A third of the right lung consolidated, in the current scan alone."""
    hu, labels = chest().volume.voxels.copy(), chest().labels.copy()
    infected = np.zeros(labels.shape, bool)
    infected[15:40, 30:50, 20:35] = labels[15:40, 30:50, 20:35] == 2
    hu[infected], labels[infected] = 30, 3
    current = LabelledScan(Volume(hu, chest().volume.affine), labels, "infected")
    points = lung_points(current)
    registration = register(CoarseChest.of(chest()), CoarseChest.of(current))
    assert np.linalg.norm(registration.placement.to_prior(points) - points, axis=1).max() < 2.5


def test_the_grid_is_coarse_whatever_the_scan_has():
    fine = moved(chest(), Move(), (1.0, 2.0, 2.0))
    for scan in (chest(), fine):
        coarse = CoarseChest.of(scan)
        assert_allclose(np.linalg.norm(coarse.affine[:3, :3], axis=0), GRID_MM, rtol=0.05)
        assert coarse.lung.sum() * GRID_MM**3 == pytest.approx(
            (scan.labels > 0).sum() * np.prod(scan.volume.spacing_mm), rel=0.03
        )
