"""Areas of marching-cubes cells, counted by hand; spacing is anisotropic throughout."""

import math
from itertools import product

import numpy as np
import pytest

from covidseg_runtime.surface_elements import CORNER_BITS, CORNERS, surface_areas_mm2

SPACING = (3.0, 2.0, 1.0)


def code_of(*corners):
    return sum(CORNER_BITS[corner] for corner in corners)


def area_of(*corners):
    return surface_areas_mm2(SPACING)[code_of(*corners)]


def corner_area():
    # The triangle between points 1.5, 1 and 0.5 mm along the three axes: half the root of the squared faces' sum.
    return 0.5 * math.sqrt((1.5 * 1.0) ** 2 + (1.5 * 0.5) ** 2 + (1.0 * 0.5) ** 2)


def test_a_cell_of_one_kind_has_no_border():
    assert area_of() == 0
    assert area_of(*CORNERS) == 0


@pytest.mark.parametrize(("axis", "face_mm2"), [(0, 2.0), (1, 3.0), (2, 6.0)])
def test_half_a_cell_is_cut_by_a_whole_face(axis, face_mm2):
    assert area_of(*(corner for corner in CORNERS if corner[axis] == 0)) == pytest.approx(face_mm2, abs=1e-12)


@pytest.mark.parametrize("corner", CORNERS)
def test_one_corner_is_cut_off_by_a_triangle(corner):
    assert area_of(corner) == pytest.approx(corner_area(), abs=1e-12)


def test_an_edge_is_cut_off_by_a_slanted_rectangle():
    # Along x (1 mm): the slant joins the middles of a 3 mm and a 2 mm edge.
    assert area_of((0, 0, 0), (0, 0, 1)) == pytest.approx(math.hypot(1.5, 1.0) * 1.0, abs=1e-12)


def test_opposite_corners_are_cut_off_one_by_one():
    assert area_of((0, 0, 0), (1, 1, 1)) == pytest.approx(2 * corner_area(), abs=1e-12)
    assert area_of((0, 0, 0), (0, 1, 1)) == pytest.approx(2 * corner_area(), abs=1e-12)


def test_inside_and_outside_have_the_same_border():
    areas = surface_areas_mm2(SPACING)
    assert np.allclose(areas, areas[::-1], rtol=0, atol=1e-12)


def test_a_mirrored_cell_has_the_same_border():
    areas = surface_areas_mm2(SPACING)
    for code, axis in product(range(256), range(3)):
        mirrored = 0
        for corner, bit in CORNER_BITS.items():
            if code & bit:
                mirrored |= CORNER_BITS[tuple(1 - n if i == axis else n for i, n in enumerate(corner))]
        assert areas[mirrored] == pytest.approx(areas[code], abs=1e-9)
