"""What a report says about a label map: volumes in mL, percentages, HU classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.coarse_grid import CoarseLabels

LEFT_LUNG, RIGHT_LUNG, INFECTION = 1, 2, 3
CONSOLIDATION_FROM_HU = -300

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Sides:
    """One number for both lungs together, the left and the right; None where it is not defined."""

    whole: float | None
    left: float | None
    right: float | None


@dataclass(frozen=True)
class Measures:
    """Measures of one scan.

    A lung includes the infection within it. An infected voxel belongs to the lung whose nearest voxel is closest
    (judged on voxels about 3 mm apart).

    Attributes:
        lung_volume_ml: Lung ∪ infection.
        infection_volume_ml: Infection.
        infection_percent: Infection / (lung ∪ infection) × 100; None without lung.
        ground_glass_ml: Infected voxels below -300 HU.
        consolidation_ml: Infected voxels of -300 HU and above.
        mean_lung_hu: Mean HU of lung ∪ infection; None without lung.
        mean_infection_hu: Mean HU of the infection; None without infection.
        lesion_count: 26-connected infections.
    """

    lung_volume_ml: Sides
    infection_volume_ml: Sides
    infection_percent: Sides
    ground_glass_ml: float
    consolidation_ml: float
    mean_lung_hu: float | None
    mean_infection_hu: float | None
    lesion_count: int


def measure(labels: NDArray[np.uint8], hu: NDArray[Any], spacing_mm: Spacing) -> Measures:
    """Measure a label map.

    Args:
        labels: (Z, Y, X), classes 0 to 3.
        hu: (Z, Y, X), the CT.
        spacing_mm: (z, y, x).
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    counts = np.zeros(4, np.int64)
    sums_hu = np.zeros(4, np.float64)
    consolidated = 0
    # Slice by slice: a scan-sized mask or float copy would cost more memory than the scan.
    for plane, plane_hu in zip(labels, hu, strict=True):
        flat = plane.ravel()
        counts += np.bincount(flat, minlength=4)[:4]
        sums_hu += np.bincount(flat, weights=plane_hu.ravel(), minlength=4)[:4]
        consolidated += int(np.count_nonzero(plane_hu[plane == INFECTION] >= CONSOLIDATION_FROM_HU))
    infected = int(counts[INFECTION])
    in_left = count_infection_in_left(labels, spacing_mm) if infected else 0
    infection = _sides(in_left * voxel_ml, (infected - in_left) * voxel_ml)
    lung = _sides(
        (int(counts[LEFT_LUNG]) + in_left) * voxel_ml, (int(counts[RIGHT_LUNG]) + infected - in_left) * voxel_ml
    )
    return Measures(
        lung_volume_ml=lung,
        infection_volume_ml=infection,
        infection_percent=Sides(
            *(_percent(getattr(infection, side), getattr(lung, side)) for side in ("whole", "left", "right"))
        ),
        ground_glass_ml=round((infected - consolidated) * voxel_ml, 3),
        consolidation_ml=round(consolidated * voxel_ml, 3),
        mean_lung_hu=_mean(float(sums_hu[1:].sum()), int(counts[1:].sum())),
        mean_infection_hu=_mean(float(sums_hu[INFECTION]), infected),
        lesion_count=count_lesions(labels),
    )


def count_infection_in_left(labels: NDArray[np.uint8], spacing_mm: Spacing) -> int:
    """Infected voxels whose nearest lung voxel is of the left lung."""
    coarse = CoarseLabels.of(labels, spacing_mm)
    lung = (coarse.labels == LEFT_LUNG) | (coarse.labels == RIGHT_LUNG)
    if not lung.any():
        # Without any lung the body's middle parts the sides; x grows to the patient's left.
        return int(np.count_nonzero(labels[:, :, labels.shape[2] // 2 :] == INFECTION))
    return sum(
        int(np.count_nonzero((plane == INFECTION) & (nearest_lung == LEFT_LUNG)))
        for plane, nearest_lung in zip(labels, coarse.spread(coarse.labels, lung), strict=True)
    )


def count_lesions(labels: NDArray[np.uint8]) -> int:
    """Number of 26-connected infections."""
    from scipy import ndimage

    box = infection_box(labels)
    if box is None:
        return 0
    _, count = ndimage.label(labels[box] == INFECTION, structure=np.ones((3, 3, 3)))
    return int(count)


def infection_box(labels: NDArray[np.uint8]) -> tuple[slice, slice, slice] | None:
    """Smallest box that holds all infection; None if there is none."""
    infected_slices = [(z, plane == INFECTION) for z, plane in enumerate(labels) if (plane == INFECTION).any()]
    if not infected_slices:
        return None
    footprint = np.logical_or.reduce([plane for _, plane in infected_slices])
    ys, xs = np.flatnonzero(footprint.any(axis=1)), np.flatnonzero(footprint.any(axis=0))
    return (
        slice(infected_slices[0][0], infected_slices[-1][0] + 1),
        slice(int(ys[0]), int(ys[-1]) + 1),
        slice(int(xs[0]), int(xs[-1]) + 1),
    )


def _sides(left_ml: float, right_ml: float) -> Sides:
    return Sides(whole=round(left_ml + right_ml, 3), left=round(left_ml, 3), right=round(right_ml, 3))


def _percent(part: float, whole: float) -> float | None:
    return round(100.0 * part / whole, 3) if whole > 0 else None


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 1) if count else None
