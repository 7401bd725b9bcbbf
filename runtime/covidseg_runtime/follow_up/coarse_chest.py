"""A scan on voxels about 5 mm apart: enough to bring one chest onto another, at a thousandth of the cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.follow_up.labelled_scan import LabelledScan
from covidseg_runtime.follow_up.placement import Points, apply_affine
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.resampling import GridPair, to_model_grid
from covidseg_runtime.spooling import every_nth

Field = NDArray[np.float32]

GRID_MM = 5.0
# Of voxels this far apart the means are taken: the others would cost eight times as much and change nothing.
_SAMPLING_MM = 1.5


@dataclass(frozen=True, eq=False)
class CoarseChest:
    """What registration looks at; every array is (Z, Y, X), orientation SPL.

    Attributes:
        hu: The CT, means.
        lung: Share of each voxel that is lung or infection, 0 to 1.
        infection: Share of each voxel that is infection.
        affine: (4, 4), voxel index to RAS+ mm.
    """

    hu: Field
    lung: Field
    infection: Field
    affine: NDArray[np.float64]

    @classmethod
    def of(cls, scan: LabelledScan) -> CoarseChest:
        """Sample a scan over its whole field of view."""
        turned, labels = scan.turned, scan.turned_labels.voxels
        steps = _steps(turned.spacing_mm)
        sampled = every_nth(labels, steps)
        grids = GridPair.for_spacing(sampled.shape, _times(turned.spacing_mm, steps), (GRID_MM,) * 3)
        return cls(
            hu=to_model_grid(every_nth(turned.voxels, steps), grids),
            lung=to_model_grid(sampled > 0, grids),
            infection=to_model_grid(sampled == INFECTION, grids),
            affine=turned.affine @ _to_source_index(grids, steps),
        )

    def around_lungs(self, margin_mm: float) -> CoarseChest:
        """The box around the lungs, wider by a margin."""
        places = np.argwhere(self.lung > 0)
        margin = round(margin_mm / GRID_MM)
        start = np.maximum(places.min(axis=0) - margin, 0)
        stop = places.max(axis=0) + margin + 1
        box = tuple(slice(first, last) for first, last in zip(start, stop, strict=True))
        affine = self.affine.copy()
        affine[:3, 3] = apply_affine(self.affine, start)
        return CoarseChest(self.hu[box], self.lung[box], self.infection[box], affine)

    @property
    def in_lung(self) -> NDArray[np.bool_]:
        """Voxels that are lung or infection by half and more."""
        return self.lung >= 0.5

    @property
    def points_mm(self) -> Points:
        """Centre of every voxel in RAS+ mm, (n, 3)."""
        return apply_affine(self.affine, np.indices(self.lung.shape).reshape(3, -1).T)

    @property
    def lung_center_mm(self) -> NDArray[np.float64]:
        """Middle of the lungs in RAS+ mm, (3,)."""
        center: NDArray[np.float64] = apply_affine(self.affine, np.argwhere(self.in_lung)).mean(axis=0)
        return center


def _steps(spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    z, y, x = (max(1, round(_SAMPLING_MM / mm)) for mm in spacing_mm)
    return z, y, x


def _times(spacing_mm: tuple[float, float, float], steps: tuple[int, int, int]) -> tuple[float, float, float]:
    z, y, x = (mm * step for mm, step in zip(spacing_mm, steps, strict=True))
    return z, y, x


def _to_source_index(grids: GridPair, steps: tuple[int, int, int]) -> NDArray[np.float64]:
    """(4, 4): index of a coarse voxel's centre to the index in the scan."""
    ratio = np.array(grids.source_shape) / np.array(grids.model_shape)
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(ratio * steps)
    matrix[:3, 3] = (0.5 * ratio - 0.5) * steps
    return matrix
