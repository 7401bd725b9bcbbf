"""What is asked of every n-th voxel is answered as whole-scan formulas answer it, equal distances included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from covidseg_runtime.coarse_grid import TO_HIGHER_X, CoarseLabels, eroded, label_box, nearest_voxels


def _random_mask(seed: int, shape: tuple[int, int, int] = (17, 23, 29), share: float = 0.02) -> np.ndarray:
    """Blobs of a few voxels."""
    mask = np.random.default_rng(seed).random(shape) < share
    return ndimage.binary_dilation(mask, iterations=seed % 3) if seed % 3 else mask


@pytest.mark.parametrize("spacing_mm", [(3.0, 3.0, 3.0), (2.5, 3.0, 3.0), (3.0, 2.8125, 2.625)])
@pytest.mark.parametrize("seed", range(6))
def test_the_nearest_voxel_is_that_of_the_distance_transform(seed: int, spacing_mm: tuple[float, float, float]) -> None:
    known = _random_mask(seed)
    unknown = np.argwhere(~known)
    transform = ndimage.distance_transform_edt(~known, sampling=spacing_mm, return_distances=False, return_indices=True)
    np.testing.assert_array_equal(nearest_voxels(known, unknown, spacing_mm), transform[:, *unknown.T].T)


def test_no_voxel_is_nearer_where_rounding_parts_equal_distances() -> None:
    # With such a spacing the transform's choice among equal distances is that of rounding.
    known, spacing_mm = _random_mask(0), (2.5, 2.726564, 2.726564)
    unknown = np.argwhere(~known)
    distances = ndimage.distance_transform_edt(~known, sampling=spacing_mm)[tuple(unknown.T)]
    found = np.linalg.norm((nearest_voxels(known, unknown, spacing_mm) - unknown) * spacing_mm, axis=1)
    np.testing.assert_allclose(found, distances, rtol=1e-12)


def test_a_search_can_lean_to_the_other_side() -> None:
    known = np.zeros((1, 1, 5), np.bool_)
    known[0, 0, [0, 4]] = True
    middle = np.array([[0, 0, 2]])
    assert nearest_voxels(known, middle, (1.0, 1.0, 1.0)).tolist() == [[0, 0, 0]]
    assert nearest_voxels(known, middle, (1.0, 1.0, 1.0), lean_mm=TO_HIGHER_X).tolist() == [[0, 0, 4]]


@pytest.mark.parametrize("shape", [(9, 10, 11), (1, 10, 11), (2, 2, 2), (0, 0, 0)])
def test_erosion_is_that_of_scipy(shape: tuple[int, int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.9
    np.testing.assert_array_equal(eroded(mask), ndimage.binary_erosion(mask))


def test_the_box_of_labels_is_the_smallest() -> None:
    labels = np.zeros((5, 6, 7), np.uint8)
    assert labels[label_box(labels)].size == 0
    labels[1, 2, 3] = labels[3, 1, 6] = 2
    assert label_box(labels) == (slice(1, 4), slice(1, 3), slice(3, 7))


def _cells_of(labels: np.ndarray, coarse: CoarseLabels) -> list[tuple[slice, ...]]:
    """The block of voxels of each cell of the box."""
    starts = [(np.array(cell) + coarse.first) * coarse.steps for cell in np.ndindex(coarse.labels.shape)]
    return [tuple(slice(a, a + n) for a, n in zip(start, coarse.steps, strict=True)) for start in starts]


@pytest.mark.parametrize("spacing_mm", [(1.25, 0.75, 0.75), (5.0, 1.0, 0.7), (3.0, 3.0, 3.0)])
def test_each_cell_has_its_first_voxel_and_its_highest_label(spacing_mm: tuple[float, float, float]) -> None:
    labels = np.zeros((9, 22, 27), np.uint8)
    labels[3:, 5:21, 7:] = np.random.default_rng(0).integers(0, 4, (6, 16, 20)) * _random_mask(1, (6, 16, 20))
    coarse = CoarseLabels.of(labels, spacing_mm)
    blocks = [labels[cell] for cell in _cells_of(labels, coarse)]
    assert coarse.labels.ravel().tolist() == [block[0, 0, 0] for block in blocks]
    assert coarse.highest.ravel().tolist() == [block.max() for block in blocks]
    assert sum(np.count_nonzero(block) for block in blocks) == np.count_nonzero(labels)


def test_the_planes_within_cells_are_exactly_their_voxels() -> None:
    labels = np.ones((9, 22, 27), np.uint8)  # no axis is a whole number of cells
    coarse = CoarseLabels.of(labels, (1.25, 0.75, 0.75))
    cells = np.random.default_rng(0).random(coarse.labels.shape) < 0.1
    cells[0] = False
    expected = labels.copy()
    for chosen, block in zip(cells.ravel(), _cells_of(labels, coarse), strict=True):
        expected[block] += chosen
    for window, within in coarse.planes_within(cells, labels):
        window += within
    np.testing.assert_array_equal(labels, expected)


def test_an_empty_map_has_no_cells() -> None:
    coarse = CoarseLabels.of(np.zeros((4, 5, 6), np.uint8), (1.0, 1.0, 1.0))
    assert coarse.labels.size == coarse.highest.size == 0
