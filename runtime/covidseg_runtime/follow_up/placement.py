"""Where a point of one scan lies in the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Points = NDArray[np.float64]

_INVERSION_STEPS = 10


@dataclass(frozen=True, eq=False)
class Placement:
    """A map from the current scan to the prior, and its inverse.

    Attributes:
        current_to_prior: (4, 4), RAS+ mm of the current scan to RAS+ mm of the prior.
        displacement_mm: (Z, Y, X, 3), added to a point of the current scan before the matrix is applied.
        displacement_affine: (4, 4), index of that grid to RAS+ mm of the current scan.
    """

    current_to_prior: Matrix
    displacement_mm: NDArray[np.float64]
    displacement_affine: Matrix

    @classmethod
    def of_matrix(cls, current_to_prior: Matrix) -> Placement:
        """Nothing but a matrix."""
        return cls(current_to_prior, np.zeros((1, 1, 1, 3)), np.eye(4))

    @property
    def stretch(self) -> tuple[float, float]:
        """By how much the matrix stretches lengths, at the least and at the most (its singular values)."""
        values = np.linalg.svd(self.current_to_prior[:3, :3], compute_uv=False)
        return float(values[-1]), float(values[0])

    def to_prior(self, points: Points) -> Points:
        """Map (n, 3) points of the current scan to the prior, RAS+ mm."""
        return apply_affine(self.current_to_prior, points + self._displacement(points))

    def to_current(self, points: Points) -> Points:
        """Map (n, 3) points of the prior to the current scan, RAS+ mm; the inverse of `to_prior`."""
        undeformed = apply_affine(inverted(self.current_to_prior), points)
        mapped = undeformed
        # A fixed point: a smooth displacement changes by much less than the distance it is looked up at.
        for _ in range(_INVERSION_STEPS):
            mapped = undeformed - self._displacement(mapped)
        return mapped

    def _displacement(self, points: Points) -> Points:
        return np.stack(
            [interpolate(self.displacement_mm[..., axis], self.displacement_affine, points) for axis in range(3)],
            axis=1,
        )


def apply_affine(affine: Matrix, points: NDArray[Any]) -> Points:
    """Apply a (4, 4) matrix to (n, 3) points."""
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3], dtype=np.float64)


def inverted(affine: Matrix) -> Matrix:
    """The inverse of a (4, 4) matrix."""
    return np.asarray(np.linalg.inv(affine), dtype=np.float64)


def interpolate(field: NDArray[Any], affine: Matrix, points: Points) -> NDArray[np.float64]:
    """Values (n,) of a field (Z, Y, X) at (n, 3) points, linear; beyond its border as at the border.

    Args:
        field: Any real type.
        affine: (4, 4), index of the field to mm.
        points: In mm.
    """
    from scipy import ndimage

    indices = apply_affine(inverted(affine), points)
    return np.asarray(
        ndimage.map_coordinates(field, indices.T, output=np.float64, order=1, mode="nearest"), dtype=np.float64
    )


def within_grid(shape: tuple[int, ...], affine: Matrix, points: Points) -> NDArray[np.bool_]:
    """Which of (n, 3) points lie in a voxel of a grid.

    Args:
        shape: Of the grid.
        affine: (4, 4), its index to mm.
        points: In mm.
    """
    indices = apply_affine(inverted(affine), points)
    return np.asarray(np.all((indices >= -0.5) & (indices <= np.array(shape) - 0.5), axis=1), dtype=np.bool_)
