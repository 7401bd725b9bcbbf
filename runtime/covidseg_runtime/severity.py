"""Severity scores of COVID-19 on CT: the reader's scores, computed from shares of infected lung.

Each is given only where the regions it is defined on are there. The grade CT-0 to CT-4 needs the two lungs. The CT
severity score (0 to 25) and the total severity score (0 to 20) need the five lobes, which covidseg does not label: they
can come from another tool, as a label map on the scan's grid.

Readers estimate by eye; these are computed. Published edges differ by a point between authors, so each score carries
the rule by which it was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.coarse_grid import CoarseLabels, nearest_voxels
from covidseg_runtime.errors import VolumeError
from covidseg_runtime.measures import INFECTION, Sides, Spacing
from covidseg_runtime.same_grid import on_grid_of
from covidseg_runtime.spooling import planes
from covidseg_runtime.volume import MODEL_ORIENTATION, Volume, reorient_array, to_orientation

# The values of lungmask's LTRCLobes.
LOBES: Mapping[int, str] = MappingProxyType(
    {1: "left upper", 2: "left lower", 3: "right upper", 4: "right middle", 5: "right lower"}
)
NEEDS_LOBES = "needs the five lobes, which covidseg does not label"

CT_GRADE_RULE = (
    "Infected share of the lung with more of it: CT-0 none, CT-1 up to 25 %, CT-2 above 25 up to 50 %, "
    "CT-3 above 50 up to 75 %, CT-4 above 75 % (Moscow; MosMedData)."
)
CT_SEVERITY_RULE = (
    "Of each lobe 0 none, 1 below 5 %, 2 from 5 to 25 %, 3 above 25 up to 50 %, 4 above 50 up to 75 %, 5 above 75 %; "
    "the sum of five lobes, 0 to 25."
)
TOTAL_SEVERITY_RULE = (
    "Of each lobe 0 none, 1 up to 25 %, 2 above 25 up to 50 %, 3 above 50 up to 75 %, 4 above 75 %; the sum of five "
    "lobes, 0 to 20."
)


@dataclass(frozen=True)
class Lobe:
    """What one lobe holds; it includes the infection in it.

    Attributes:
        name: Such as "left upper".
        volume_ml: Lobe ∪ infection in it.
        infection_ml: Infection in it.
        infection_percent: Infection / volume × 100; None where there is no such lobe.
    """

    name: str
    volume_ml: float
    infection_ml: float
    infection_percent: float | None


@dataclass(frozen=True)
class Score:
    """One score.

    Attributes:
        name: As readers call it.
        value: The score; None where it cannot be given.
        highest: The most it can be.
        rule: How it is computed.
        reason: Why it is not given; None where it is.
    """

    name: str
    value: int | None
    highest: int
    rule: str
    reason: str | None = None


@dataclass(frozen=True)
class Severity:
    """The scores of one scan.

    Attributes:
        ct_grade: CT-0 to CT-4.
        ct_severity: 0 to 25.
        total_severity: 0 to 20.
        lobes: What the two sums are made of; empty where no lobes were given.
    """

    ct_grade: Score
    ct_severity: Score
    total_severity: Score
    lobes: tuple[Lobe, ...] = ()

    @property
    def scores(self) -> tuple[Score, Score, Score]:
        """All of them."""
        return self.ct_grade, self.ct_severity, self.total_severity


def score_severity(infection_percent: Sides, lobes: Sequence[Lobe] = ()) -> Severity:
    """Give each score whose regions are there.

    Args:
        infection_percent: As `measure` gives it.
        lobes: What `measure_lobes` gave; none if there are no lobes.
    """
    return Severity(
        ct_grade=_ct_grade(infection_percent),
        ct_severity=_sum_of_lobes("CT severity score", ct_severity_points, lobes, CT_SEVERITY_RULE),
        total_severity=_sum_of_lobes("Total severity score", total_severity_points, lobes, TOTAL_SEVERITY_RULE),
        lobes=tuple(lobes),
    )


def ct_severity_points(percent: float) -> int:
    """Points of one lobe, 0 to 5, as of `CT_SEVERITY_RULE`."""
    if 0 < percent < 5:
        return 1
    return 0 if percent <= 0 else total_severity_points(percent) + 1


def total_severity_points(percent: float) -> int:
    """Points of one lobe, 0 to 4, as of `TOTAL_SEVERITY_RULE`; the same steps make the grades CT-0 to CT-4."""
    return int(np.searchsorted((0, 25, 50, 75), percent, side="left"))


def _ct_grade(infection_percent: Sides) -> Score:
    missing = [side for side in ("left", "right") if getattr(infection_percent, side) is None]
    if infection_percent.left is None or infection_percent.right is None:
        reason = f"needs both lungs; the {' and the '.join(missing)} lung has no volume here"
        return Score("CT grade", None, 4, CT_GRADE_RULE, reason)
    worse = max(infection_percent.left, infection_percent.right)
    return Score("CT grade", total_severity_points(worse), 4, CT_GRADE_RULE)


def _sum_of_lobes(name: str, points: Callable[[float], int], lobes: Sequence[Lobe], rule: str) -> Score:
    highest = points(100.0) * len(LOBES)
    if not lobes:
        return Score(name, None, highest, rule, NEEDS_LOBES)
    shares = [lobe.infection_percent for lobe in lobes if lobe.infection_percent is not None]
    if len(shares) < len(LOBES):
        empty = ", ".join(lobe.name for lobe in lobes if lobe.infection_percent is None)
        return Score(name, None, highest, rule, f"needs five lobes; no voxel is labelled {empty}")
    return Score(name, sum(points(share) for share in shares), highest, rule)


def align_lobes(scan: Volume, lobes: Volume) -> NDArray[np.uint8]:
    """The lobes on the scan's grid, (X, Y, Z), their axes in its order.

    Raises:
        VolumeError: If they lie on another grid, or hold values other than 0 and those of `LOBES`.
    """
    voxels = on_grid_of(scan, lobes, reference_name="scan", name="map of lobes")
    values = sorted(set(np.unique(voxels).tolist()) - {0})
    if not values or not set(values) <= set(LOBES):
        expected = ", ".join(f"{value} {name}" for value, name in LOBES.items())
        raise VolumeError(
            f"the map of lobes holds the labels {values}; expected are {expected} (as of lungmask's LTRCLobes)"
        )
    return voxels.astype(np.uint8, copy=False)


def measure_lobes(scan: Volume, labels: NDArray[np.uint8], lobes: NDArray[np.uint8]) -> tuple[Lobe, ...]:
    """What each lobe holds.

    Infection outside every lobe belongs to the nearest one (judged on voxels about 3 mm apart): tools that label lobes
    often leave consolidation out.

    Args:
        scan: The scan that both lie on.
        labels: (X, Y, Z), 0 to 3.
        lobes: (X, Y, Z), 0 and the values of `LOBES`.

    Returns:
        One for each of `LOBES`, in its order.
    """
    spl = to_orientation(scan, MODEL_ORIENTATION)
    lobes_spl = reorient_array(lobes, scan.orientation, MODEL_ORIENTATION)
    infection_spl = reorient_array(labels, scan.orientation, MODEL_ORIENTATION)
    in_lobe, infected = np.zeros(len(LOBES) + 1, np.int64), np.zeros(len(LOBES) + 1, np.int64)
    for plane, infection in zip(planes(lobes_spl), planes(infection_spl), strict=True):
        in_lobe += np.bincount(plane.ravel(), minlength=len(in_lobe))
        infected += np.bincount(plane[infection == INFECTION], minlength=len(infected))
    outside = _nearest_lobes(lobes_spl, infection_spl, spl.spacing_mm)
    voxel_ml = float(np.prod(spl.spacing_mm)) / 1000.0
    return tuple(
        _lobe(name, int(in_lobe[value] + outside[value]), int(infected[value] + outside[value]), voxel_ml)
        for value, name in LOBES.items()
    )


def _lobe(name: str, voxels: int, infected: int, voxel_ml: float) -> Lobe:
    percent = 100.0 * infected / voxels if voxels else None
    return Lobe(name, voxels * voxel_ml, infected * voxel_ml, percent)


def _nearest_lobes(lobes: NDArray[np.uint8], labels: NDArray[np.uint8], spacing_mm: Spacing) -> NDArray[np.int64]:
    """Infected voxels outside every lobe, counted for the lobe nearest to each."""
    counts = np.zeros(len(LOBES) + 1, np.int64)
    coarse = CoarseLabels.of(lobes, spacing_mm)
    places = np.concatenate(
        [_outside(z, *pair) for z, pair in enumerate(zip(planes(lobes), planes(labels), strict=True))]
    )
    if len(places):
        cells = (places // coarse.steps - coarse.first).astype(np.intp)
        nearest = nearest_voxels(coarse.highest > 0, cells, coarse.spacing_mm)
        counts += np.bincount(coarse.highest[tuple(nearest.T)], minlength=len(counts))
    return counts


def _outside(z: int, lobes: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Indices (n, 3) of infection in one slice that no lobe holds."""
    places = np.argwhere((labels == INFECTION) & (lobes == 0))
    return np.insert(places, 0, z, axis=1)
