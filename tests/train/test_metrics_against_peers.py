"""The metrics against DeepMind's ``surface-distance`` and MONAI, on random pairs of masks."""

import math

import numpy as np
import pytest
import surface_distance
import torch
from monai.metrics import compute_confusion_matrix_metric, compute_dice, get_confusion_matrix
from scipy.ndimage import gaussian_filter

from covidseg_runtime.metrics import (
    compute_surface_distances,
    confusion_measures,
    dice,
    hausdorff_mm,
    normalised_surface_dice,
)

PAIRS = 200
TOLERANCES_MM = (0.5, 1.0, 3.0)
KINDS = ("noise", "blobs", "moved", "touching", "voxel", "speck")


def pair(seed):
    """Two masks of a random shape, neither empty, and an anisotropic spacing."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 25, 3))
    spacing_mm = tuple(rng.uniform(0.5, 5.0, 3))
    first, second = masks(KINDS[seed % len(KINDS)], shape, rng)
    first.flat[rng.integers(first.size)] = second.flat[rng.integers(first.size)] = True
    return first, second, spacing_mm


def masks(kind, shape, rng):
    if kind == "noise":
        return tuple(rng.random(shape) < rng.uniform(0.02, 0.98) for _ in range(2))
    if kind == "blobs":
        return tuple(blob(shape, rng) for _ in range(2))
    if kind == "moved":
        one = blob(shape, rng)
        return one, np.roll(one, rng.integers(-2, 3, 3), (0, 1, 2))
    if kind == "touching":  # each fills the array to the border along some axes
        return tuple(slab(shape, rng) for _ in range(2))
    if kind == "voxel":
        return np.zeros(shape, bool), np.zeros(shape, bool)
    one = blob(shape, rng)
    return one, one.copy()


def blob(shape, rng):
    field = gaussian_filter(rng.standard_normal(shape), rng.uniform(1.0, 3.0), mode="constant")
    return field > np.quantile(field, rng.uniform(0.3, 0.95))


def slab(shape, rng):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(0, int(rng.integers(1, n + 1))) for n in shape)] = True
    return mask


# The package was written for an older SciPy and uses its former submodules.
@pytest.mark.filterwarnings("ignore:Please (use|import) `:DeprecationWarning")
@pytest.mark.parametrize("first_seed", range(0, PAIRS, 50))
def test_surface_measures_equal_deepmind_s(first_seed):
    for seed in range(first_seed, first_seed + 50):
        first, second, spacing_mm = pair(seed)
        ours = compute_surface_distances(first, second, spacing_mm)
        theirs = surface_distance.compute_surface_distances(first, second, spacing_mm)
        assert ours.first_areas_mm2.sum() == pytest.approx(theirs["surfel_areas_gt"].sum(), rel=1e-9), seed
        for tolerance_mm in TOLERANCES_MM:
            expected = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance_mm)
            assert normalised_surface_dice(ours, tolerance_mm) == pytest.approx(expected, abs=1e-6), seed
        for percentile in (100, 95):
            expected = surface_distance.compute_robust_hausdorff(theirs, percentile)
            assert hausdorff_mm(ours, percentile) == pytest.approx(expected, abs=1e-6), seed


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("sensitivity", "sensitivity"),
        ("specificity", "specificity"),
        ("precision", "precision"),
        ("f1", "f1 score"),
        ("accuracy", "accuracy"),
        ("mcc", "matthews correlation coefficient"),
    ],
)
def test_confusion_measures_equal_monai_s(ours, theirs):
    compared = 0
    for seed in range(PAIRS):
        predicted, truth, _ = pair(seed)
        value = getattr(confusion_measures(predicted, truth), ours)
        counts = get_confusion_matrix(*batches(predicted, truth))
        if math.isnan(value):  # MONAI has NaN or 0 here; our rule is tested by hand
            continue
        assert value == pytest.approx(float(compute_confusion_matrix_metric(theirs, counts.double())), abs=1e-6), seed
        compared += 1
    assert compared > 0.9 * PAIRS


def test_dice_equals_monai_s():
    for seed in range(PAIRS):
        predicted, truth, _ = pair(seed)
        assert dice(predicted, truth) == pytest.approx(float(compute_dice(*batches(predicted, truth))), abs=1e-6), seed


def batches(predicted, truth):
    return [torch.from_numpy(mask)[None, None].float() for mask in (predicted, truth)]
