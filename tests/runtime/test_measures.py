import numpy as np
import pytest

from covidseg_runtime.lung_box import find_lung_box
from covidseg_runtime.measures import measure
from covidseg_runtime.postprocessing import remove_small_lesions

SPACING = (5.0, 2.0, 1.0)  # 10 mm³ a voxel


def labelled():
    """Right lung at low x, left at high x, one lesion in each, (Z, Y, X)."""
    labels = np.zeros((10, 20, 40), np.uint8)
    labels[:, 2:18, 2:18] = 2
    labels[:, 2:18, 22:38] = 1
    labels[2:4, 5:10, 4:8] = 3  # 40 voxels, right
    labels[6:7, 5:10, 30:34] = 3  # 20 voxels, left
    return labels


def test_volumes_and_percentages_of_counted_voxels():
    hu = np.where(labelled() == 3, -500, -850).astype(np.int16)
    hu[2, 5:10, 4:8] = -300  # 20 voxels
    measures = measure(labelled(), hu, SPACING)
    assert measures.lung_volume_ml.left == measures.lung_volume_ml.right == 25.6
    assert measures.infection_volume_ml.whole == 0.6
    assert measures.infection_volume_ml.right == 0.4
    assert measures.infection_percent.left == pytest.approx(100 * 0.2 / 25.6, abs=1e-3)
    assert measures.infection_percent.whole == pytest.approx(100 * 0.6 / 51.2, abs=1e-3)
    assert (measures.ground_glass_ml, measures.consolidation_ml) == (0.4, 0.2)
    assert measures.mean_infection_hu == pytest.approx(-433.3, abs=0.05)
    assert measures.lesion_count == 2


def test_an_empty_map_has_no_percentage():
    measures = measure(np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 3), np.int16), SPACING)
    assert measures.infection_percent.whole is None
    assert measures.mean_lung_hu is None
    assert measures.lesion_count == 0


def test_infection_without_lung_is_parted_by_the_middle():
    labels = np.zeros((4, 4, 10), np.uint8)
    labels[0, 0, 8] = labels[0, 0, 1] = labels[0, 0, 2] = 3
    measures = measure(labels, np.zeros(labels.shape, np.int16), (10.0, 10.0, 10.0))
    assert (measures.infection_volume_ml.left, measures.infection_volume_ml.right) == (1.0, 2.0)


def test_small_lesions_become_the_lung_around_them():
    cleaned = remove_small_lesions(labelled(), SPACING, 0.3)
    assert (cleaned[6:7, 5:10, 30:34] == 1).all()
    assert (cleaned[2:4, 5:10, 4:8] == 3).all()
    assert np.array_equal(remove_small_lesions(labelled(), SPACING, 0.0), labelled())
    assert np.array_equal(remove_small_lesions(labelled(), SPACING, 0.2), labelled())


def test_a_small_lesion_outside_the_lungs_becomes_background():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1, 1, 1] = 3
    assert not remove_small_lesions(labels, SPACING, 1.0).any()


def chest(lungs=True):
    z, y, x = np.mgrid[:60, :80, :110]
    hu = np.full(z.shape, -1000, np.int16)
    hu[((y - 40) / 34) ** 2 + ((x - 55) / 50) ** 2 < 1] = 40
    if lungs:
        for middle in (32, 78):
            hu[((z - 32) / 20) ** 2 + ((y - 40) / 18) ** 2 + ((x - middle) / 15) ** 2 < 1] = -850
    return hu


def test_the_box_holds_the_lungs_with_a_margin():
    box = find_lung_box(chest(), (3.0, 3.0, 3.0), margin_mm=9.0)
    assert box.rule == "lungs"
    inside = np.zeros(chest().shape, bool)
    inside[box.slices] = True
    lungs = chest() == -850
    assert inside[lungs].all()
    assert box.shape == inside[box.slices].shape
    assert inside.sum() < 0.8 * inside.size


def test_without_lungs_the_body_and_without_body_everything():
    box = find_lung_box(chest(lungs=False), (3.0, 3.0, 3.0))
    assert box.rule == "body"
    assert box.shape[0] == 60
    empty = find_lung_box(np.full((5, 6, 7), -1000, np.int16), (3.0, 3.0, 3.0))
    assert empty.rule == "whole"
    assert empty.shape == (5, 6, 7)


def test_one_lung_alone_is_too_narrow_to_trust():
    hu = chest()
    hu[:, :, 60:][hu[:, :, 60:] == -850] = 40
    assert find_lung_box(hu, (3.0, 3.0, 3.0)).rule == "body"
