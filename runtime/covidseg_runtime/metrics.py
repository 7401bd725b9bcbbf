"""How well two masks agree. The expensive part, the distances of the borders, is computed once.

Dice and normalised surface Dice (NSD) as in the COVID-19-CT-Seg benchmark (Ma et al. 2021): NSD after Nikolov et
al., arXiv 1809.04430, with a tolerance of 3 mm for infection and 1 mm for lungs.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]


def dice(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Dice similarity coefficient ``2|A∩B| / (|A|+|B|)``; NaN if both masks are empty, 0 if one is."""
    _require_same_shape(first, second)
    a, b = first.astype(bool, copy=False), second.astype(bool, copy=False)
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2.0 * int(np.count_nonzero(a & b)) / total if total else math.nan


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between the borders of two masks.

    A border element is a corner where eight voxels meet that do not all agree. Its area is the length of the
    vector area of the border within the cell around the corner: exact for planes along the axes.

    Attributes:
        first_to_second_mm: For each border element of the first mask, the distance to the second's border in mm.
        second_to_first_mm: The other direction.
        first_areas_mm2: Areas of the first mask's border elements.
        second_areas_mm2: Areas of the second's.
    """

    first_to_second_mm: NDArray[np.float64]
    second_to_first_mm: NDArray[np.float64]
    first_areas_mm2: NDArray[np.float64]
    second_areas_mm2: NDArray[np.float64]


def compute_surface_distances(first: NDArray[Any], second: NDArray[Any], spacing_mm: Spacing) -> SurfaceDistances:
    """Measure the distances between two borders.

    Args:
        first: Mask with three axes.
        second: Mask of the same shape.
        spacing_mm: Spacing along the three axes.

    Returns:
        Distances; infinite where the other mask is empty, no elements where the own one is.
    """
    _require_same_shape(first, second)
    a, b = _crop_together(first.astype(bool, copy=False), second.astype(bool, copy=False))
    border_a, areas_a = _border(a, spacing_mm)
    border_b, areas_b = _border(b, spacing_mm)
    return SurfaceDistances(
        first_to_second_mm=_distances_to(border_b, spacing_mm)[border_a],
        second_to_first_mm=_distances_to(border_a, spacing_mm)[border_b],
        first_areas_mm2=areas_a,
        second_areas_mm2=areas_b,
    )


def normalised_surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Share of both borders' area that lies within ``tolerance_mm`` of the other border.

    NaN if both masks are empty, 0 if one is.
    """
    total = distances.first_areas_mm2.sum() + distances.second_areas_mm2.sum()
    if total == 0:
        return math.nan
    close = distances.first_areas_mm2[distances.first_to_second_mm <= tolerance_mm].sum()
    close += distances.second_areas_mm2[distances.second_to_first_mm <= tolerance_mm].sum()
    return float(close / total)


def hausdorff_mm(distances: SurfaceDistances, percentile: float = 100.0) -> float:
    """Hausdorff distance in mm, or a percentile of it weighted by area (95 is the usual robust choice).

    NaN if both masks are empty, infinite if one is.
    """
    if not distances.first_areas_mm2.size and not distances.second_areas_mm2.size:
        return math.nan
    return max(
        _weighted_percentile(distances.first_to_second_mm, distances.first_areas_mm2, percentile),
        _weighted_percentile(distances.second_to_first_mm, distances.second_areas_mm2, percentile),
    )


@dataclass(frozen=True)
class ConfusionMeasures:
    """Voxel counts put into ratios; NaN where the denominator is 0.

    Attributes:
        sensitivity: TP / (TP + FN).
        specificity: TN / (TN + FP).
        precision: TP / (TP + FP).
        f1: 2TP / (2TP + FP + FN), the same formula as Dice.
        accuracy: (TP + TN) / all.
        mcc: Matthews correlation coefficient.
    """

    sensitivity: float
    specificity: float
    precision: float
    f1: float
    accuracy: float
    mcc: float


def confusion_measures(predicted: NDArray[Any], truth: NDArray[Any]) -> ConfusionMeasures:
    """Compare voxel by voxel over the whole volume."""
    _require_same_shape(predicted, truth)
    p, t = predicted.astype(bool, copy=False), truth.astype(bool, copy=False)
    tp = int(np.count_nonzero(p & t))
    fp, fn = int(np.count_nonzero(p)) - tp, int(np.count_nonzero(t)) - tp
    tn = p.size - tp - fp - fn
    return ConfusionMeasures(
        sensitivity=_ratio(tp, tp + fn),
        specificity=_ratio(tn, tn + fp),
        precision=_ratio(tp, tp + fp),
        f1=_ratio(2 * tp, 2 * tp + fp + fn),
        accuracy=_ratio(tp + tn, p.size),
        mcc=_ratio(tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _require_same_shape(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.shape != second.shape:
        raise VolumeError(f"The masks have shapes {first.shape} and {second.shape}; one shape is expected.")


def _crop_together(first: Mask, second: Mask) -> tuple[Mask, Mask]:
    """Cut both masks to the box that holds their voxels, plus one voxel of nothing around it."""
    either = first | second
    slices = []
    for axis in range(3):
        used = np.flatnonzero(either.any(axis=tuple(other for other in range(3) if other != axis)))
        slices.append(slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0))
    box = tuple(slices)
    return np.pad(first[box], 1), np.pad(second[box], 1)


def _border(mask: Mask, spacing_mm: Spacing) -> tuple[Mask, NDArray[np.float64]]:
    """Corners where the eight voxels around do not agree, and the area of each."""
    corner_shape = tuple(n - 1 for n in mask.shape)
    count = np.zeros(corner_shape, np.int8)
    along = [np.zeros(corner_shape, np.int8) for _ in range(3)]
    for offsets in product((0, 1), repeat=3):
        voxels = mask[tuple(slice(o, o + n) for o, n in zip(offsets, corner_shape, strict=True))].astype(np.int8)
        count += voxels
        for axis, offset in enumerate(offsets):
            along[axis] += voxels if offset else -voxels
    border = (count > 0) & (count < 8)
    face_mm2 = [spacing_mm[1] * spacing_mm[2], spacing_mm[0] * spacing_mm[2], spacing_mm[0] * spacing_mm[1]]
    # Along each axis four pairs of voxels share the cell, so each differing pair stands for a quarter of a face.
    squares = [(step[border] / 4.0 * mm2) ** 2 for step, mm2 in zip(along, face_mm2, strict=True)]
    return border, np.sqrt(np.sum(squares, axis=0))


def _distances_to(border: Mask, spacing_mm: Spacing) -> NDArray[np.float64]:
    if not border.any():
        return np.full(border.shape, math.inf)
    from scipy.ndimage import distance_transform_edt  # a third of a second to import; only metrics need it

    distances: NDArray[np.float64] = distance_transform_edt(~border, sampling=spacing_mm)
    return distances


def _weighted_percentile(values: NDArray[np.float64], weights: NDArray[np.float64], percentile: float) -> float:
    if not values.size:
        return math.inf
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    index = min(int(np.searchsorted(share, percentile / 100.0)), values.size - 1)
    return float(values[order][index])
