"""A point goes to the other scan and comes back."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from covidseg_runtime.follow_up.placement import Placement, apply_affine, interpolate, within_grid

# 90 degrees about z, stretched by 2 along the new x, then shifted.
TURN = np.array([[0.0, -2.0, 0.0, 10.0], [1.0, 0.0, 0.0, 20.0], [0.0, 0.0, 1.0, 30.0], [0.0, 0.0, 0.0, 1.0]])


def wavy() -> Placement:
    """Up to 8 mm along z, changing over 100 mm, on a grid of 10 mm."""
    z = np.arange(20) * 10.0
    displacement = np.zeros((20, 2, 2, 3))
    displacement[..., 2] = 8.0 * np.sin(z / 30.0)[:, None, None]
    # z of the grid is z of the patient.
    affine = np.array([[0.0, 0, 500.0, 0], [0, 500.0, 0, 0], [10.0, 0, 0, 0], [0, 0, 0, 1.0]])
    return Placement(TURN, displacement, affine)


def test_a_matrix_maps_a_point_as_on_paper():
    assert_allclose(Placement.of_matrix(TURN).to_prior(np.array([[1.0, 2.0, 3.0]])), [[10 - 4, 20 + 1, 33.0]])
    assert_allclose(Placement.of_matrix(TURN).stretch, (1.0, 2.0))


def test_the_displacement_is_added_before_the_matrix():
    point = np.array([[100.0, 100.0, 50.0]])
    moved = point + [0.0, 0.0, 8.0 * np.sin(50.0 / 30.0)]
    assert_allclose(wavy().to_prior(point), apply_affine(TURN, moved))


def test_to_current_undoes_to_prior():
    points = np.random.default_rng(0).uniform(0.0, 180.0, (500, 3))
    placement = wavy()
    assert_allclose(placement.to_current(placement.to_prior(points)), points, atol=0.05)


def test_a_grid_reaches_half_a_voxel_beyond_its_centres():
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    points = np.array([[0.0, 0.0, 0.0], [-0.9, 0.0, 0.0], [-1.1, 0.0, 0.0], [18.9, 0, 42.4], [0.0, 0.0, 42.6]])
    assert within_grid((10, 10, 9), affine, points).tolist() == [True, True, False, True, False]


def test_beyond_its_border_a_field_goes_on_as_at_the_border():
    field = np.arange(3.0).reshape(3, 1, 1)
    assert_allclose(interpolate(field, np.eye(4), np.array([[0.5, 0, 0], [2.0, 0, 0], [9.0, 4.0, 0.0]])), [0.5, 2, 2])
