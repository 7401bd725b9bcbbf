"""Between the scan's own grid and the model's grid: a pair of functions, the second undoes the first.

Both directions are separable and linear. Along one axis the two grids cover the same length, so the
centre of voxel ``k`` of one lies at ``(k + 0.5) * n_other / n_own - 0.5`` of the other. Where the goal is finer
this is linear interpolation; where it is coarser the triangle is widened by the ratio, so that every source
voxel counts and noise does not alias (the rule of image libraries for antialiased downscaling).

In the plane a slice is multiplied by one small matrix per axis; along z the slices are summed with their few
weights. Each slice has its own product of fixed shape, so the result does not depend on how slices are grouped.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError

if TYPE_CHECKING:
    from covidseg_runtime.sliding_window import LogitSlab

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class GridPair:
    """A source grid and a model grid over the same box of the patient, axes (Z, Y, X).

    Attributes:
        source_shape: Voxels of the scan (or of the box cut from it).
        source_spacing_mm: Their spacing.
        model_shape: Voxels of the model's grid.
        model_spacing_mm: Their spacing, exact: source length divided by ``model_shape``.
    """

    source_shape: Shape
    source_spacing_mm: Spacing
    model_shape: Shape
    model_spacing_mm: Spacing

    @classmethod
    def for_spacing(cls, source_shape: Shape, source_spacing_mm: Spacing, model_spacing_mm: Spacing) -> "GridPair":
        """Choose the model grid whose spacing is nearest to ``model_spacing_mm``, at least one voxel an axis."""
        lengths = tuple(n * mm for n, mm in zip(source_shape, source_spacing_mm, strict=True))
        z, y, x = (max(1, round(length / mm)) for length, mm in zip(lengths, model_spacing_mm, strict=True))
        exact = (lengths[0] / z, lengths[1] / y, lengths[2] / x)
        return cls(source_shape, source_spacing_mm, (z, y, x), exact)


def axis_weights(n_from: int, n_to: int) -> NDArray[np.float32]:
    """Weights that take ``n_from`` voxels to ``n_to`` voxels over the same length.

    Returns:
        Matrix of shape (n_to, n_from), float32; every row is non-negative and sums to 1.
    """
    ratio = n_from / n_to
    centres = (np.arange(n_to) + 0.5) * ratio - 0.5
    # Beyond the first and last centre the border voxel is repeated.
    centres = np.clip(centres, 0, n_from - 1)
    distance = np.abs(centres[:, None] - np.arange(n_from)[None, :])
    weights = np.maximum(0.0, 1.0 - distance / max(1.0, ratio))
    normalised: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


def to_model_grid(voxels: NDArray[Any], grids: GridPair) -> NDArray[np.float32]:
    """Resample the source box to the model's grid.

    Args:
        voxels: Shape ``grids.source_shape``, (Z, Y, X), any real type; converted slice by slice.
        grids: The two grids.

    Returns:
        Array of shape ``grids.model_shape``, float32.

    Raises:
        VolumeError: If the shape is not that of the source grid.
    """
    if voxels.shape != grids.source_shape:
        raise VolumeError(f"The voxels have shape {voxels.shape}, the source grid has {grids.source_shape}.")
    weights_z, weights_y, weights_x = (
        axis_weights(n_from, n_to) for n_from, n_to in zip(grids.source_shape, grids.model_shape, strict=True)
    )
    weights_x = np.ascontiguousarray(weights_x.T)
    model = np.zeros(grids.model_shape, np.float32)
    for z in range(grids.source_shape[0]):
        plane = weights_y @ voxels[z].astype(np.float32) @ weights_x  # (Ym, Xm)
        for target in np.flatnonzero(weights_z[:, z]):
            model[target] += weights_z[target, z] * plane
    return model


def to_source_grid(slabs: Iterable["LogitSlab"], grids: GridPair) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Resample logits back to the source grid, slice by slice.

    Args:
        slabs: Finished slabs of logits on the model grid, in order, covering every slice once.
        grids: The two grids; the same that ``to_model_grid`` was given.

    Yields:
        ``(z, logits)`` for every source slice z in order; logits have shape (C, Y, X), float32. Only the model
        slices that later source slices still need are kept.
    """
    weights_z, weights_y, weights_x = (
        axis_weights(n_from, n_to) for n_from, n_to in zip(grids.model_shape, grids.source_shape, strict=True)
    )
    weights_x = np.ascontiguousarray(weights_x.T)
    taps = [np.flatnonzero(row) for row in weights_z]
    kept: dict[int, NDArray[np.float32]] = {}
    next_z = 0
    for slab in slabs:
        for offset in range(slab.logits.shape[1]):
            # A copy: a view would hold the whole slab in memory.
            kept[slab.start + offset] = slab.logits[:, offset].copy()
        newest = slab.start + slab.logits.shape[1] - 1
        while next_z < len(taps) and taps[next_z][-1] <= newest:
            plane = sum(weights_z[next_z, k] * kept[k] for k in taps[next_z][1:])
            plane = weights_z[next_z, taps[next_z][0]] * kept[taps[next_z][0]] + plane
            yield next_z, weights_y @ plane @ weights_x  # (C, Ys, Xs)
            next_z += 1
            oldest_needed = taps[next_z][0] if next_z < len(taps) else newest + 1
            for k in [k for k in kept if k < oldest_needed]:
                del kept[k]
