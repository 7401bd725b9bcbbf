"""The lesions of a label map one by one, for a reader who wants to look at each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.coarse_grid import CoarseLabels
from covidseg_runtime.lesions import Lesions
from covidseg_runtime.measures import INFECTION, LEFT_LUNG, RIGHT_LUNG
from covidseg_runtime.volume import MODEL_ORIENTATION, Volume, reorient_array, to_orientation

Side = Literal["left", "right", "both"]


@dataclass(frozen=True)
class Lesion:
    """One 26-connected infection.

    Attributes:
        volume_ml: Its volume.
        share_percent: Of all infection.
        mean_hu: Mean HU of its voxels.
        side: The lung it lies in, as `measures` judges it; None where the map has no lung.
        center_mm: RAS in mm, the voxel of it that is nearest to its centre of mass: a place within it.
    """

    volume_ml: float
    share_percent: float
    mean_hu: float
    side: Side | None
    center_mm: tuple[float, float, float]


def list_lesions(volume: Volume, labels: NDArray[np.uint8], most: int) -> tuple[Lesion, ...]:
    """The largest lesions, largest first.

    Args:
        volume: The scan in HU.
        labels: (X, Y, Z) on the scan's grid, 0 to 3.
        most: How many are listed.
    """
    scan = to_orientation(volume, MODEL_ORIENTATION)
    labels_spl = reorient_array(labels, volume.orientation, MODEL_ORIENTATION)
    lesions = Lesions.of(labels_spl, INFECTION)
    if not lesions.count:
        return ()
    sizes = lesions.voxels
    chosen = np.argsort(-sizes, kind="stable")[:most]
    sides = _Sides.of(labels_spl, scan.spacing_mm)
    voxel_ml = float(np.prod(scan.spacing_mm)) / 1000.0
    listed = []
    for size, (z, y, x) in zip(sizes[chosen], lesions.places(chosen), strict=True):
        places = np.stack((z, y, x), axis=1)
        center = places[_nearest_to_centre(places * scan.spacing_mm)]
        r, a, s = (scan.affine @ (*center, 1.0))[:3].round(1).tolist()
        listed.append(
            Lesion(
                volume_ml=float(size) * voxel_ml,
                share_percent=100.0 * float(size) / float(sizes.sum()),
                mean_hu=float(scan.voxels[z, y, x].mean(dtype=np.float64)),
                side=sides.side_of(places),
                center_mm=(r, a, s),
            )
        )
    return tuple(listed)


def _nearest_to_centre(places_mm: NDArray[np.floating]) -> int:
    return int(np.argmin(((places_mm - places_mm.mean(axis=0)) ** 2).sum(axis=1)))


@dataclass(frozen=True, eq=False)
class _Sides:
    """Which cells of infection belong to the left lung; None where the map has no lung."""

    coarse: CoarseLabels
    in_left: NDArray[np.bool_] | None

    @classmethod
    def of(cls, labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float]) -> _Sides:
        """Judge as `covidseg_runtime.measures.count_infection_in_left` does."""
        coarse = CoarseLabels.of(labels, spacing_mm)
        left = coarse.labels == LEFT_LUNG
        lung = left | (coarse.labels == RIGHT_LUNG)
        return cls(coarse, coarse.carry(left, lung, coarse.highest == INFECTION) if lung.any() else None)

    def side_of(self, places: NDArray[np.int64]) -> Side | None:
        """The side of voxels (n, 3), indices z, y, x."""
        if self.in_left is None:
            return None
        z, y, x = (places // self.coarse.steps - self.coarse.first).T
        share = self.in_left[z, y, x].mean()
        if 0 < share < 1:
            return "both"
        return "left" if share else "right"
