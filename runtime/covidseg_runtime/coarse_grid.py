"""A label map on every n-th voxel: for questions of whole organs, at a hundredth of the cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLING_MM = 3.0


@dataclass(frozen=True, eq=False)
class CoarseLabels:
    """Every n-th voxel of a label map, about 3 mm apart.

    Attributes:
        labels: (z, y, x).
        spacing_mm: (z, y, x) of ``labels``.
        steps: n of each axis.
        fine_shape: (Z, Y, X) of the label map.
    """

    labels: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    steps: tuple[int, int, int]
    fine_shape: tuple[int, int, int]

    @classmethod
    def of(cls, labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float]) -> CoarseLabels:
        """Sample ``labels`` (Z, Y, X)."""
        z, y, x = (max(1, round(SAMPLING_MM / mm)) for mm in spacing_mm)
        coarse_mm = (spacing_mm[0] * z, spacing_mm[1] * y, spacing_mm[2] * x)
        depth, height, width = labels.shape
        return cls(labels[::z, ::y, ::x], coarse_mm, (z, y, x), (depth, height, width))

    def spread(self, values: NDArray[np.uint8], known: NDArray[np.bool_]) -> Iterator[NDArray[np.uint8]]:
        """Carry values from where they are known over to the whole fine grid.

        Args:
            values: (z, y, x).
            known: (z, y, x), the voxels whose value counts; at least one.

        Yields:
            For each fine slice, (Y, X): the value of the known voxel nearest to each voxel's cell.
        """
        from scipy import ndimage

        nearest = ndimage.distance_transform_edt(
            ~known, sampling=self.spacing_mm, return_distances=False, return_indices=True
        )
        everywhere = values[tuple(nearest)]
        z_step, y_step, x_step = self.steps
        rows, columns = np.arange(self.fine_shape[1]) // y_step, np.arange(self.fine_shape[2]) // x_step
        for z in range(self.fine_shape[0]):
            yield everywhere[z // z_step][rows[:, None], columns]
