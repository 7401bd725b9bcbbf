from dataclasses import replace

import numpy as np
import pytest
import torch

from covidseg_train.losses import IGNORED, IN_LUNG
from covidseg_train.opaque_masses import HU, RADII_MM, OpaqueMass, draw_opaque_mass, put_opaque_mass

MASS = OpaqueMass(place=0.5, radii_mm=(20.0, 20.0, 20.0), hu=40.0, seed=7)
SPACING_MM = (2.0, 2.0, 2.0)


def drawn_chest():
    """A drawn patch: soft tissue, in it a box of lung with a rim of half density, in that a box of lesion."""
    hu, classes = torch.full((40, 48, 48), 50, dtype=torch.int16), torch.zeros((40, 48, 48), dtype=torch.uint8)
    hu[9:31, 7:41, 7:41] = -400
    hu[10:30, 8:40, 8:40], classes[10:30, 8:40, 8:40] = -850, 1
    hu[18:22, 20:30, 20:30], classes[18:22, 20:30, 20:30] = -300, 2
    return hu, classes


def test_a_mass_is_soft_tissue_within_the_lung_and_says_nothing_of_infection():
    hu, classes = drawn_chest()
    opaque, marked = put_opaque_mass(hu, classes, MASS, SPACING_MM)
    inside = marked == IN_LUNG
    assert inside.sum() > 1000
    assert (classes[inside] > 0).all()
    assert torch.equal(marked[~inside], classes[~inside])
    assert opaque.dtype == hu.dtype
    assert float(opaque[inside].median()) == pytest.approx(40, abs=15)
    assert (opaque >= hu).all()


def test_no_dark_rim_is_left_where_a_mass_meets_the_wall():
    hu, classes = drawn_chest()
    large = replace(MASS, radii_mm=(200.0, 200.0, 200.0))
    opaque, marked = put_opaque_mass(hu, classes, large, SPACING_MM)
    assert torch.equal(marked == IN_LUNG, classes > 0)
    assert opaque.min() > 20


def test_the_volume_is_that_of_the_ellipsoid():
    hu = torch.full((80, 80, 80), -850, dtype=torch.int16)
    radii_mm = (30.0, 40.0, 50.0)
    classes = torch.ones(hu.shape, dtype=torch.uint8)
    centre = (40 * 80 + 40) * 80 + 40
    mass = replace(MASS, place=(centre + 0.5) / hu.numel(), radii_mm=radii_mm)
    _, marked = put_opaque_mass(hu, classes, mass, SPACING_MM)
    expected = 4 / 3 * np.pi * np.prod(radii_mm) / 8
    assert int((marked == IN_LUNG).sum()) == pytest.approx(expected, rel=0.3)


def test_a_patch_without_lung_stays_as_it_is():
    hu, _ = drawn_chest()
    unknown = torch.full(hu.shape, IGNORED, dtype=torch.uint8)
    for classes in (torch.zeros_like(unknown), unknown):
        opaque, marked = put_opaque_mass(hu, classes, MASS, SPACING_MM)
        assert torch.equal(opaque, hu)
        assert torch.equal(marked, classes)


def test_the_last_place_is_within_the_lung():
    hu, classes = drawn_chest()
    _, marked = put_opaque_mass(hu, classes, replace(MASS, place=np.nextafter(1.0, 0.0)), SPACING_MM)
    assert (marked == IN_LUNG).any()


def test_masses_follow_from_the_seed_and_keep_to_their_range():
    drawn = [draw_opaque_mass(np.random.default_rng(seed)) for seed in range(50)]
    assert drawn == [draw_opaque_mass(np.random.default_rng(seed)) for seed in range(50)]
    assert len(set(drawn)) == 50
    for mass in drawn:
        assert 0 <= mass.place < 1
        assert all(0.7 * RADII_MM[0] <= radius <= 1.3 * RADII_MM[1] for radius in mass.radii_mm)
        assert HU[0] <= mass.hu <= HU[1]
    hu, classes = drawn_chest()
    first, second = (put_opaque_mass(hu, classes, MASS, SPACING_MM) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
