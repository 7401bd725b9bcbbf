"""What is labelled, on every n-th voxel: for questions of whole organs, at a hundredth of the cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLING_MM = 3.0


@dataclass(frozen=True, eq=False)
class CoarseMask:
    """Every n-th voxel of a label map, about 3 mm apart.

    Attributes:
        mask: (z, y, x), where the label map is not background.
        spacing_mm: (z, y, x) of ``mask``.
        steps: n of each axis.
        fine_shape: (Z, Y, X) of the label map.
    """

    mask: NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]
    steps: tuple[int, int, int]
    fine_shape: tuple[int, int, int]

    @classmethod
    def of(cls, labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float]) -> CoarseMask:
        """Sample ``labels`` (Z, Y, X)."""
        z, y, x = (max(1, round(SAMPLING_MM / mm)) for mm in spacing_mm)
        coarse_mm = (spacing_mm[0] * z, spacing_mm[1] * y, spacing_mm[2] * x)
        depth, height, width = labels.shape
        return cls(labels[::z, ::y, ::x] > 0, coarse_mm, (z, y, x), (depth, height, width))

    def spread(self, values: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """Carry values of the mask's voxels over to the fine grid.

        Args:
            values: (z, y, x); those outside the mask are not looked at.

        Yields:
            For each fine slice, (Y, X): the value of the masked voxel nearest to each voxel's cell.
        """
        from scipy import ndimage

        nearest = ndimage.distance_transform_edt(
            ~self.mask, sampling=self.spacing_mm, return_distances=False, return_indices=True
        )
        everywhere = values[tuple(nearest)]
        z_step, y_step, x_step = self.steps
        rows, columns = np.arange(self.fine_shape[1]) // y_step, np.arange(self.fine_shape[2]) // x_step
        for z in range(self.fine_shape[0]):
            yield everywhere[z // z_step][rows[:, None], columns]
