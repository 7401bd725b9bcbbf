"""What a report says about a label map: volumes in mL, percentages, HU classes."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.coarse_grid import CoarseLabels, label_box
from covidseg_runtime.lesions import Lesions
from covidseg_runtime.spooling import planes

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
        lung_volume_ml: Lung ∪ infection; None where the network labels no lungs.
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
    sums = _sum_voxels(labels, hu)
    in_left = count_infection_in_left(labels, spacing_mm) if sums.infected else 0
    infection = _sides(in_left * voxel_ml, (sums.infected - in_left) * voxel_ml)
    lung = _sides((sums.left + in_left) * voxel_ml, (sums.right + sums.infected - in_left) * voxel_ml)
    return Measures(
        lung_volume_ml=lung,
        infection_volume_ml=infection,
        infection_percent=Sides(
            *(_percent(getattr(infection, side), getattr(lung, side)) for side in ("whole", "left", "right"))
        ),
        ground_glass_ml=round((sums.infected - sums.consolidated) * voxel_ml, 3),
        consolidation_ml=round(sums.consolidated * voxel_ml, 3),
        mean_lung_hu=_mean(sums.labelled_hu, sums.left + sums.right + sums.infected),
        mean_infection_hu=_mean(sums.infected_hu, sums.infected),
        lesion_count=Lesions.of(labels, INFECTION).count if sums.infected else 0,
    )


def without_lungs(measures: Measures) -> Measures:
    """What is left where a network labels no lungs: lung volume, percentage and the lung's HU are unknown."""
    unknown = Sides(None, None, None)
    return replace(measures, lung_volume_ml=unknown, infection_percent=unknown, mean_lung_hu=None)


def count_infection_in_left(labels: NDArray[np.uint8], spacing_mm: Spacing) -> int:
    """Infected voxels whose nearest lung voxel is of the left lung."""
    coarse = CoarseLabels.of(labels, spacing_mm)
    left = coarse.labels == LEFT_LUNG
    lung = left | (coarse.labels == RIGHT_LUNG)
    if not lung.any():
        # Without any lung the body's middle parts the sides; x grows to the patient's left.
        return sum(int(np.count_nonzero(plane[:, labels.shape[2] // 2 :] == INFECTION)) for plane in planes(labels))
    infected = coarse.highest == INFECTION
    return sum(
        int(np.count_nonzero((plane == INFECTION) & in_left))
        for plane, in_left in coarse.planes_within(coarse.carry(left, lung, infected), labels)
    )


@dataclass
class _Sums:
    """Voxels of each kind, and the sum of their HU."""

    left: int = 0
    right: int = 0
    infected: int = 0
    consolidated: int = 0
    labelled_hu: float = 0.0
    infected_hu: float = 0.0


def _sum_voxels(labels: NDArray[np.uint8], hu: NDArray[Any]) -> _Sums:
    """Only labelled voxels are looked at, slice by slice: a scan-sized copy would cost more memory than the scan."""
    box = label_box(labels)
    sums = _Sums()
    for plane, plane_hu in zip(planes(labels[box]), planes(hu[box]), strict=True):
        sums.left += int(np.count_nonzero(plane == LEFT_LUNG))
        sums.right += int(np.count_nonzero(plane == RIGHT_LUNG))
        sums.labelled_hu += float(plane_hu[plane > 0].sum(dtype=np.float64))
        infected = plane == INFECTION
        if infected.any():
            infected_hu = plane_hu[infected]
            sums.infected += infected_hu.size
            sums.infected_hu += float(infected_hu.sum(dtype=np.float64))
            sums.consolidated += int(np.count_nonzero(infected_hu >= CONSOLIDATION_FROM_HU))
    return sums


def _sides(left_ml: float, right_ml: float) -> Sides:
    return Sides(whole=round(left_ml + right_ml, 3), left=round(left_ml, 3), right=round(right_ml, 3))


def _percent(part: float, whole: float) -> float | None:
    return round(100.0 * part / whole, 3) if whole > 0 else None


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 1) if count else None
