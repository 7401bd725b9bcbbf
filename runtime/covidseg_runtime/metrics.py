"""How well two masks agree. The expensive part, the distances of the borders, is computed once.

Dice and normalised surface Dice (NSD) as in the COVID-19-CT-Seg benchmark (Ma et al. 2021): NSD after Nikolov et
al., arXiv 1809.04430, with a tolerance of 3 mm for infection and 1 mm for lungs.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.surface_elements import CORNER_BITS, surface_areas_mm2

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

    A border element is a cell between eight neighbouring voxels that do not all agree; its area is that of the
    marching-cubes surface within the cell (``surface_elements``).

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


@dataclass(frozen=True)
class CaseMeasures:
    """One structure of one case, by every measure.

    Attributes:
        dsc: Dice similarity coefficient; NaN if both masks are empty, 0 if one is.
        nsd: Normalised surface Dice at the tolerance asked for; NaN and 0 as above.
        hausdorff95_mm: 95th percentile of the Hausdorff distance; NaN if both are empty, infinite if one is.
        sensitivity: As ``ConfusionMeasures``, as the five that follow.
        specificity: See above.
        precision: See above.
        f1: See above.
        accuracy: See above.
        mcc: See above.
        predicted_ml: Volume of the prediction.
        reference_ml: Volume of the truth.
        volume_error_ml: ``predicted_ml - reference_ml``.
    """

    dsc: float
    nsd: float
    hausdorff95_mm: float
    sensitivity: float
    specificity: float
    precision: float
    f1: float
    accuracy: float
    mcc: float
    predicted_ml: float
    reference_ml: float
    volume_error_ml: float


def measure_case(
    predicted: NDArray[Any], truth: NDArray[Any], spacing_mm: Spacing, tolerance_mm: float
) -> CaseMeasures:
    """Compare a predicted mask with the truth by every measure.

    Args:
        predicted: Mask with three axes.
        truth: Mask of the same shape.
        spacing_mm: Spacing along the three axes.
        tolerance_mm: Of the NSD; the benchmark of Ma et al. takes 3 mm for infection and 1 mm for lungs.
    """
    distances = compute_surface_distances(predicted, truth, spacing_mm)
    confusion = confusion_measures(predicted, truth)
    voxel_ml = math.prod(spacing_mm) / 1000.0
    predicted_ml, reference_ml = (int(np.count_nonzero(mask)) * voxel_ml for mask in (predicted, truth))
    return CaseMeasures(
        dsc=dice(predicted, truth),
        nsd=normalised_surface_dice(distances, tolerance_mm),
        hausdorff95_mm=hausdorff_mm(distances, 95.0),
        sensitivity=confusion.sensitivity,
        specificity=confusion.specificity,
        precision=confusion.precision,
        f1=confusion.f1,
        accuracy=confusion.accuracy,
        mcc=confusion.mcc,
        predicted_ml=predicted_ml,
        reference_ml=reference_ml,
        volume_error_ml=predicted_ml - reference_ml,
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
    """Cells between eight voxels that do not all agree, and the area of the border in each."""
    cells = tuple(n - 1 for n in mask.shape)
    codes = np.zeros(cells, np.uint8)
    for corner, bit in CORNER_BITS.items():
        voxels = mask[tuple(slice(start, start + n) for start, n in zip(corner, cells, strict=True))]
        codes |= voxels.view(np.uint8) * np.uint8(bit)
    border = (codes > 0) & (codes < 255)
    return border, surface_areas_mm2(spacing_mm)[codes[border]]


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
