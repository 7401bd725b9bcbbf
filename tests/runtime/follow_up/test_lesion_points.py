"""Lesions become points that stand for their whole volume."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from phantom import spl_affine

from covidseg_runtime.follow_up.lesion_points import POINTS_MM, LesionPoints
from covidseg_runtime.volume import Volume


def labelled(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], *boxes: tuple[slice, ...]) -> Volume:
    labels = np.ones(shape, np.uint8)
    for box in boxes:
        labels[box] = 3
    return Volume(labels, spl_affine(spacing_mm))


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7, 0.7), (1.0, 0.8, 0.8), (5.0, 0.7, 0.7), (10.0, 3.0, 2.0)])
def test_volumes_are_those_of_the_voxels(spacing_mm):
    labels = labelled((12, 20, 30), spacing_mm, np.s_[2:5, 3:10, 4:17], np.s_[8:9, 15:16, 25:26])
    points = LesionPoints.of(labels)
    voxel_ml = np.prod(spacing_mm) / 1000
    assert sorted(points.volume_ml) == pytest.approx([voxel_ml, 3 * 7 * 13 * voxel_ml])
    assert_allclose(np.bincount(points.lesion, weights=points.point_ml), points.volume_ml)


def test_the_centre_of_a_box_is_its_middle():
    labels = labelled((30, 30, 30), (2.0, 1.5, 1.0), np.s_[4:11, 5:12, 3:20])
    (center,) = LesionPoints.of(labels).centers_mm
    # Indices (7, 8, 11), by hand through the affine: x = 31 - 1.0 * 11, y = 17 - 1.5 * 8, z = -250 + 2.0 * 7.
    assert_allclose(center, (20.0, 5.0, -236.0))


@pytest.mark.parametrize("spacing_mm", [(0.6, 0.6, 0.6), (8.0, 0.7, 0.7)])
def test_points_leave_no_gap_wider_than_their_distance(spacing_mm):
    labels = labelled((10, 40, 40), spacing_mm, np.s_[2:8, 4:36, 4:36])
    points = LesionPoints.of(labels)
    for axis in range(3):
        steps = np.diff(np.unique(points.points[:, axis].round(3)))
        assert steps.max() <= 1.3 * POINTS_MM
    # As many as the lesion has volume for: a point stands for some (2.5 mm)^3.
    assert 0.5 < points.point_ml.mean() / (POINTS_MM**3 / 1000) < 2.0


def test_two_lesions_in_one_block_stay_two():
    labels = labelled((1, 1, 9), (0.5, 0.5, 0.5), np.s_[:, :, 1:2], np.s_[:, :, 3:4])
    points = LesionPoints.of(labels)
    assert points.count == 2
    assert len(points.points) == 2


def test_a_share_is_weighed_by_volume():
    labels = labelled((1, 1, 20), (1.0, 1.0, 1.0), np.s_[:, :, 0:7])
    points = LesionPoints.of(labels)
    x = 31.0 - np.array([0.5, 2.5, 4.5, 6.0])  # blocks of two voxels, and one of one
    assert_allclose(np.sort(points.points[:, 0]), np.sort(x))
    assert points.means(points.points[:, 0] == x[3]) == pytest.approx([1 / 7])


def test_no_infection_no_points():
    points = LesionPoints.of(labelled((5, 5, 5), (1.0, 1.0, 1.0)))
    assert points.count == 0
    assert points.points.shape == (0, 3)
    assert points.centers_mm.shape == (0, 3)
