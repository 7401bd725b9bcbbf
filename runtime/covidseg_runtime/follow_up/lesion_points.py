"""Lesions as points about 2.5 mm apart: what can be carried from one scan into the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.follow_up.placement import Points, apply_affine
from covidseg_runtime.lesions import Lesions
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.volume import Volume

Indices = NDArray[np.int64]
Numbers = NDArray[np.float64]

POINTS_MM = 2.5


@dataclass(frozen=True, eq=False)
class LesionPoints:
    """The lesions of a label map.

    Attributes:
        count: Number of lesions.
        volume_ml: (count,) of each lesion: its voxels times the voxel's volume.
        points: (n, 3), RAS+ mm.
        point_ml: (n,) volume that each point stands for.
        lesion: (n,) the lesion of each point, 0 to ``count`` - 1.
    """

    count: int
    volume_ml: Numbers
    points: Points
    point_ml: Numbers
    lesion: Indices

    @classmethod
    def of(cls, labels: Volume) -> LesionPoints:
        """Find the 26-connected infections of a label map (Z, Y, X)."""
        lesions = Lesions.of(labels.voxels, INFECTION)
        spacing_mm = labels.spacing_mm
        voxel_ml = np.float64(math.prod(spacing_mm) / 1000.0)
        blocks = [max(1, round(POINTS_MM / mm)) for mm in spacing_mm]
        indices, voxels, lesion = _block_means(lesions, labels.shape, blocks)
        indices, voxels, lesion = _split_thick(indices, voxels, lesion, spacing_mm)
        points = apply_affine(labels.affine, indices)
        return cls(lesions.count, lesions.voxels * voxel_ml, points, voxels * voxel_ml, lesion)

    @property
    def centers_mm(self) -> Points:
        """(count, 3), the mean of each lesion's points."""
        return np.stack([self.means(self.points[:, axis]) for axis in range(3)], axis=1)

    def means(self, values: Numbers | NDArray[np.bool_]) -> Numbers:
        """(count,): mean over each lesion of a value (n,) of its points, by volume."""
        total = np.bincount(self.lesion, weights=self.point_ml * values, minlength=self.count)
        mean: Numbers = total / np.bincount(self.lesion, weights=self.point_ml, minlength=self.count)
        return mean

    def moved(self, points: Points) -> LesionPoints:
        """The same lesions elsewhere."""
        return replace(self, points=points)


def _block_means(lesions: Lesions, shape: tuple[int, int, int], blocks: list[int]) -> tuple[Numbers, Numbers, Indices]:
    """One point for the voxels that a lesion has in a block of the grid.

    Returns:
        (n, 3) mean index (z, y, x), (n,) number of voxels, (n,) lesion.
    """
    rows, start = np.divmod(lesions.starts, lesions.plane[1])
    stop = start + lesions.stops - lesions.starts
    # Runs along x are cut where a block ends.
    pieces = (stop - 1) // blocks[2] - start // blocks[2] + 1
    run = np.repeat(np.arange(len(rows)), pieces)
    nth = np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    block_x = start[run] // blocks[2] + nth
    begin, end = np.maximum(start[run], block_x * blocks[2]), np.minimum(stop[run], (block_x + 1) * blocks[2])
    z, y = np.divmod(rows[run], lesions.plane[0])
    lesion = lesions.lesion_of_run[run]
    counts = [math.ceil(n / block) for n, block in zip(shape, blocks, strict=True)]
    key = ((lesion * counts[0] + z // blocks[0]) * counts[1] + y // blocks[1]) * counts[2] + block_x
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    voxels = np.bincount(inverse, weights=end - begin).astype(np.float64)
    means = [np.bincount(inverse, weights=(end - begin) * at) / voxels for at in (z, y, (begin + end - 1) / 2)]
    return np.stack(means, axis=1), voxels, lesion[first]


def _split_thick(
    indices: Numbers, voxels: Numbers, lesion: Indices, spacing_mm: tuple[float, float, float]
) -> tuple[Numbers, Numbers, Indices]:
    """Several points along an axis whose voxels are longer than the points' distance: thick slices leave no gaps."""
    for axis, mm in enumerate(spacing_mm):
        parts = math.ceil(mm / POINTS_MM - 0.5)
        if parts > 1:
            offsets = (np.arange(parts) + 0.5) / parts - 0.5
            indices = np.repeat(indices, parts, axis=0)
            indices[:, axis] += np.tile(offsets, len(indices) // parts)
            voxels, lesion = np.repeat(voxels / parts, parts), np.repeat(lesion, parts)
    return indices, voxels, lesion
