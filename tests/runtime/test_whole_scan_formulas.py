"""What is computed in boxes, on rims and by runs is what formulas over the whole scan give.

The formulas are written out here: clear, and too slow and too large for a scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from covidseg_runtime.lung_sides import label_sides, part_left_right
from covidseg_runtime.measures import measure
from covidseg_runtime.postprocessing import remove_detached, remove_small_lesions

FINE, UNEVEN, COARSE = (1.5, 1.5, 1.5), (2.0, 2.5, 1.0), (5.0, 3.0, 3.0)  # 2 × 2 × 2, 2 × 1 × 3, 1 voxels a cell
EVERYWHERE = np.ones((3, 3, 3), np.bool_)

chests = pytest.mark.parametrize(
    ("seed", "spacing_mm"), [(0, FINE), (1, FINE), (2, UNEVEN), *((seed, COARSE) for seed in range(3, 10))]
)


def _chest(seed: int, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Labels (Z, Y, X): two lungs that may touch, specks apart from them, infections large and small."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(mm / step) for mm, step in zip((110, 130, 190), spacing_mm, strict=True))
    z, y, x = (np.arange(n) * mm for n, mm in zip(shape, spacing_mm, strict=True))
    labels = np.zeros(shape, np.uint8)
    for label, middle in ((2, 55 + rng.uniform(0, 12)), (1, 135 - rng.uniform(0, 12))):
        radius = rng.uniform(30, 44)
        apart = ((z - 55) / 45)[:, None, None] ** 2 + ((y - 65) / 50)[:, None] ** 2 + ((x - middle) / radius) ** 2
        labels[apart + rng.normal(0, 0.05, shape) < 1] = label
    noise = ndimage.gaussian_filter(rng.normal(size=shape), [5 / mm for mm in spacing_mm])
    labels[(labels > 0) & (noise > np.quantile(noise, 0.9))] = 3
    for label in (1, 2, 3, 3, 3):
        corner = [rng.integers(0, n) for n in shape]
        labels[tuple(slice(a, a + rng.integers(1, 9)) for a in corner)] = label
    labels[rng.random(shape) < 1e-3] = 3
    return labels


def _spread(
    labels: np.ndarray, steps: tuple[int, ...], spacing_mm: Any, values: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """The value of the known coarse voxel nearest to each voxel's cell."""
    coarse_mm = [mm * step for mm, step in zip(spacing_mm, steps, strict=True)]
    nearest = ndimage.distance_transform_edt(~known, sampling=coarse_mm, return_distances=False, return_indices=True)
    cells = np.ix_(*(np.arange(n) // step for n, step in zip(labels.shape, steps, strict=True)))
    return values[tuple(nearest)][cells]


def _steps(spacing_mm: tuple[float, float, float]) -> tuple[int, ...]:
    return tuple(max(1, round(3.0 / mm)) for mm in spacing_mm)


def _sampled(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    return labels[tuple(slice(None, None, step) for step in _steps(spacing_mm))]


@chests
def test_what_is_detached(seed: int, spacing_mm: tuple[float, float, float]) -> None:
    labels = _chest(seed, spacing_mm)
    pieces, _ = ndimage.label(_sampled(labels, spacing_mm) > 0)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    kept = _spread(labels, _steps(spacing_mm), spacing_mm, (sizes >= 0.1 * sizes.max())[pieces], pieces > 0)
    infected_ml = np.count_nonzero((labels == 3) & ~kept) * np.prod(spacing_mm) / 1000
    cleaned = labels.copy()
    assert remove_detached(cleaned, spacing_mm) == pytest.approx(infected_ml)
    np.testing.assert_array_equal(cleaned, labels * kept)


def _part(lungs: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    core = lungs
    for _ in range(round(15.0 / min(spacing_mm)) + 1):
        components, count = ndimage.label(core)
        sizes = np.bincount(components.ravel())[1:]
        order = np.argsort(sizes)[::-1][:2]
        if count > 1 and sizes[order[1]] >= 0.15 * sizes.sum():
            first, second = (np.argwhere(components == index + 1).mean(axis=0) * spacing_mm for index in order)
            apart = first - second
            if abs(apart[2]) >= max(abs(apart[:2])):
                left, right = order if apart[2] > 0 else order[::-1]
                to_left, to_right = (
                    ndimage.distance_transform_edt(components != index + 1, sampling=spacing_mm)
                    for index in (left, right)
                )
                return lungs & (to_left <= to_right)
        core = ndimage.binary_erosion(core)
    left = lungs.copy()
    left[:, :, : lungs.shape[2] // 2] = False
    return left


@chests
def test_which_lung_is_which(seed: int, spacing_mm: tuple[float, float, float]) -> None:
    labels = _chest(seed, spacing_mm)
    labels[labels == 2] = 1
    coarse = _sampled(labels, spacing_mm)
    steps = _steps(spacing_mm)
    coarse_mm = tuple(mm * step for mm, step in zip(spacing_mm, steps, strict=True))
    left = _part(coarse > 0, coarse_mm)
    found_left, found_right = part_left_right(coarse > 0, coarse_mm)
    np.testing.assert_array_equal(found_left, left)
    np.testing.assert_array_equal(found_right, (coarse > 0) & ~left)
    is_left = _spread(labels, steps, spacing_mm, left, coarse > 0)
    expected = np.where((labels == 1) & ~is_left, np.uint8(2), labels)
    label_sides(labels, spacing_mm)
    np.testing.assert_array_equal(labels, expected)


def test_lungs_as_far_from_one_side_as_from_the_other_are_left() -> None:
    lungs = np.zeros((20, 20, 41), np.bool_)
    lungs[2:18, 2:18, 2:18] = lungs[2:18, 2:18, 23:39] = True
    lungs[8:11, 8:11, 18:23] = True  # eroded once, the bridge of 3 × 3 voxels is a line; twice, it is gone
    left = _part(lungs, (1.0, 1.0, 1.0))
    assert left[9, 9, 20]
    np.testing.assert_array_equal(part_left_right(lungs, (1.0, 1.0, 1.0))[0], left)


def _without_small_lesions(labels: np.ndarray, voxel_ml: float, min_lesion_ml: float) -> np.ndarray:
    components, count = ndimage.label(labels == 3, structure=EVERYWHERE)
    cleaned = labels.copy()
    for index in range(1, count + 1):
        lesion = components == index
        if lesion.sum() * voxel_ml < min_lesion_ml:
            around = labels[ndimage.binary_dilation(lesion, EVERYWHERE) & ~lesion]
            left, right = np.count_nonzero(around == 1), np.count_nonzero(around == 2)
            cleaned[lesion] = 0 if left + right == 0 else 1 if left > right else 2
    return cleaned


@pytest.mark.parametrize("min_lesion_ml", [0.05, 0.5, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_small_lesions_become(seed: int, min_lesion_ml: float) -> None:
    labels = _chest(seed, COARSE)
    expected = _without_small_lesions(labels, 0.045, min_lesion_ml)
    assert np.count_nonzero(expected != labels)
    np.testing.assert_array_equal(remove_small_lesions(labels, COARSE, min_lesion_ml), expected)


def _measures(labels: np.ndarray, hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> Iterator[Any]:
    """Volumes of infection, ground glass, consolidation and both lungs, mean HU, number of lesions."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    infected = labels == 3
    coarse = _sampled(labels, spacing_mm)
    lung = (coarse == 1) | (coarse == 2)
    in_left = infected & (_spread(labels, _steps(spacing_mm), spacing_mm, coarse, lung) == 1)
    volumes = [infected, in_left, infected & (hu < -300), infected & (hu >= -300), (labels == 1) | in_left, labels > 0]
    yield from (round(int(np.count_nonzero(mask)) * voxel_ml, 3) for mask in volumes)
    yield from (round(float(hu[mask].astype(np.float64).mean()), 1) for mask in (labels > 0, infected))
    yield ndimage.label(infected, structure=EVERYWHERE)[1]


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@chests
def test_what_is_measured(seed: int, spacing_mm: tuple[float, float, float], dtype: type) -> None:
    labels = _chest(seed, spacing_mm)
    hu = np.random.default_rng(seed).normal(-600, 300, labels.shape).astype(dtype)
    found = measure(labels, hu, spacing_mm)
    assert [
        found.infection_volume_ml.whole,
        found.infection_volume_ml.left,
        found.ground_glass_ml,
        found.consolidation_ml,
        found.lung_volume_ml.left,
        found.lung_volume_ml.whole,
        found.mean_lung_hu,
        found.mean_infection_hu,
        found.lesion_count,
    ] == list(_measures(labels, hu, spacing_mm))
