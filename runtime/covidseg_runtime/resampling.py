"""Between the scan's own grid and the model's grid: a pair of functions, the second undoes the first.

Both directions are separable and linear. Along one axis the two grids cover the same length, so the
centre of voxel ``k`` of one lies at ``(k + 0.5) * n_other / n_own - 0.5`` of the other. Where the goal is finer
this is linear interpolation; where it is coarser the triangle is widened by the ratio, so that every source
voxel counts and noise does not alias (the rule of image libraries for antialiased downscaling).

In the plane a slice is multiplied by one banded matrix per axis, block by block; along z the slices are summed with
their few weights. Each slice has its own products of fixed shape, so the result does not depend on how slices are
grouped.

Labels need less than logits. Linear interpolation is convex: where the corners of a cell of the model's grid agree on
the class, so does every point within. Only voxels in the other cells, at the borders of organs, are interpolated.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.spooling import planes

if TYPE_CHECKING:
    from covidseg_runtime.sliding_window import LogitSlab

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

# Rows of a band: few, so that little of it is zero, and its product is too small for a BLAS to start threads for.
_BAND_ROWS = 16
_MIXED = 255


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
    model = np.empty(grids.model_shape, np.float32)
    for z, plane in _model_planes(voxels, grids):
        model[z] = plane
    return model


def to_model_hu(voxels: NDArray[Any], grids: GridPair) -> NDArray[np.int16]:
    """Resample the source box to the model's grid, rounded to whole HU slice by slice.

    Half the memory of ``to_model_grid`` for less than the noise of any CT.

    Args:
        voxels: As of ``to_model_grid``.
        grids: The two grids.

    Returns:
        Array of shape ``grids.model_shape``, int16.

    Raises:
        VolumeError: If the shape is not that of the source grid.
    """
    model = np.empty(grids.model_shape, np.int16)
    limits = np.iinfo(np.int16)
    for z, plane in _model_planes(voxels, grids):
        model[z] = np.clip(np.rint(plane), limits.min, limits.max)
    return model


def _model_planes(voxels: NDArray[Any], grids: GridPair) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Every slice of the model's grid, (Y, X) float32, in order; only unfinished ones are kept."""
    if voxels.shape != grids.source_shape:
        raise VolumeError(f"The voxels have shape {voxels.shape}, the source grid has {grids.source_shape}.")
    weights_z = axis_weights(grids.source_shape[0], grids.model_shape[0])
    last_source = [int(np.flatnonzero(row)[-1]) for row in weights_z]
    in_plane = _PlaneResampling.between(grids.source_shape, grids.model_shape)
    unfinished: dict[int, NDArray[np.float32]] = {}
    next_target = 0
    for z, source in enumerate(planes(voxels)):
        plane = in_plane.apply(source.astype(np.float32))
        for target in np.flatnonzero(weights_z[:, z]).tolist():
            if target not in unfinished:
                unfinished[target] = np.zeros(grids.model_shape[1:], np.float32)
            unfinished[target] += weights_z[target, z] * plane
        while next_target < len(last_source) and last_source[next_target] <= z:
            yield next_target, unfinished.pop(next_target)
            next_target += 1


def to_source_grid(slabs: Iterable["LogitSlab"], grids: GridPair) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Resample logits back to the source grid, slice by slice.

    Args:
        slabs: Finished slabs of logits on the model grid, in order, covering every slice once.
        grids: The two grids; the same that ``to_model_grid`` was given.

    Yields:
        ``(z, logits)`` for every source slice z in order; logits have shape (C, Y, X), float32. Only the model
        slices that later source slices still need are kept.
    """
    in_plane = _PlaneResampling.between(grids.model_shape, grids.source_shape)
    for z, plane in _planes_at_source_slices(slabs, grids):
        yield z, in_plane.apply(plane)


def to_source_labels(slabs: Iterable["LogitSlab"], grids: GridPair) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Find the class of highest logit on the source grid, slice by slice.

    The same classes as those of the logits of ``to_source_grid``, at a fraction of the work where the source grid is
    the finer one in the plane. Of equal logits the first class is taken.

    Args:
        slabs: Finished slabs of logits on the model grid, in order, covering every slice once.
        grids: The two grids; the same that ``to_model_grid`` was given.

    Yields:
        ``(z, classes)`` for every source slice z in order; classes have shape (Y, X), uint8.
    """
    if any(fine < coarse for fine, coarse in zip(grids.source_shape[1:], grids.model_shape[1:], strict=True)):
        for z, logits in to_source_grid(slabs, grids):
            yield z, highest_class(logits)
        return
    cells = _Cells.of(grids)
    for z, plane in _planes_at_source_slices(slabs, grids):
        yield z, cells.classes(plane)


def _planes_at_source_slices(
    slabs: Iterable["LogitSlab"], grids: GridPair
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Logits interpolated along z only: ``(z, logits)`` of every source slice, (C, Y, X) of the model's plane."""
    weights_z = axis_weights(grids.model_shape[0], grids.source_shape[0])
    taps = [np.flatnonzero(row).tolist() for row in weights_z]
    kept: dict[int, NDArray[np.float32]] = {}
    next_z = 0
    for newest, logits in _slices(slabs):
        kept[newest] = logits
        while next_z < len(taps) and taps[next_z][-1] <= newest:
            first, *others = taps[next_z]
            plane = weights_z[next_z, first] * kept[first]
            for k in others:
                plane += weights_z[next_z, k] * kept[k]
            yield next_z, plane
            next_z += 1
        oldest_needed = taps[next_z][0] if next_z < len(taps) else newest + 1
        for k in [k for k in kept if k < oldest_needed]:
            del kept[k]


def _slices(slabs: Iterable["LogitSlab"]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Each slice's number and logits (C, Y, X)."""
    for slab in slabs:
        for offset in range(slab.logits.shape[1]):
            # A copy: a view would hold the whole slab in memory.
            yield slab.start + offset, slab.logits[:, offset].copy()


@dataclass(frozen=True, eq=False)
class _Band:
    """A few rows of a weight matrix and the columns that are not zero in them."""

    rows: slice
    columns: slice
    weights: NDArray[np.float32]

    @classmethod
    def all_of(cls, weights: NDArray[np.float32]) -> tuple["_Band", ...]:
        bands = []
        for start in range(0, len(weights), _BAND_ROWS):
            rows = slice(start, min(start + _BAND_ROWS, len(weights)))
            used = np.flatnonzero(weights[rows].any(axis=0))
            columns = slice(int(used[0]), int(used[-1]) + 1)
            bands.append(cls(rows, columns, np.ascontiguousarray(weights[rows, columns])))
        return tuple(bands)


@dataclass(frozen=True, eq=False)
class _PlaneResampling:
    """The products that take a plane (Y, X), or several (C, Y, X), to another plane."""

    shape: tuple[int, int]
    bands_y: tuple[_Band, ...]
    bands_x: tuple[_Band, ...]

    @classmethod
    def between(cls, shape_from: Shape, shape_to: Shape) -> "_PlaneResampling":
        bands_y, bands_x = (
            _Band.all_of(axis_weights(n_from, n_to)) for n_from, n_to in zip(shape_from[1:], shape_to[1:], strict=True)
        )
        return cls(shape_to[1:], bands_y, bands_x)

    def apply(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        height, width = self.shape
        halfway = np.empty((*plane.shape[:-2], height, plane.shape[-1]), np.float32)
        resampled = np.empty((*plane.shape[:-2], height, width), np.float32)
        # A BLAS works on whole registers and, rarely, warns of what lies in the unused part; the planes are finite.
        with np.errstate(invalid="ignore"):
            for band in self.bands_y:
                np.matmul(band.weights, plane[..., band.columns, :], out=halfway[..., band.rows, :])
            for band in self.bands_x:
                np.matmul(halfway[..., band.columns], band.weights.T, out=resampled[..., band.rows])
        return resampled


@dataclass(frozen=True, eq=False)
class _AxisCells:
    """Between which two voxels of a coarser axis the voxels of a finer one lie.

    Attributes:
        lower: (n,) the lower of the two.
        weights: (2, n) of the lower and the upper one.
        step: From the lower to the upper one: 1, or 0 where the coarser axis has one voxel.
    """

    lower: NDArray[np.intp]
    weights: NDArray[np.float32]
    step: int

    @classmethod
    def of(cls, n_coarse: int, n_fine: int) -> "_AxisCells":
        matrix = axis_weights(n_coarse, n_fine)
        step = min(1, n_coarse - 1)
        lower = np.minimum((matrix > 0).argmax(axis=1), n_coarse - 1 - step)
        voxels = np.arange(n_fine)
        weights = np.stack([matrix[voxels, lower], step * matrix[voxels, lower + step]])
        return cls(lower, weights, step)


@dataclass(frozen=True, eq=False)
class _Cells:
    """The cells between neighbouring voxels of the model's plane, and where in them the source's voxels lie."""

    y: _AxisCells
    x: _AxisCells

    @classmethod
    def of(cls, grids: GridPair) -> "_Cells":
        (_, y_model, x_model), (_, y_source, x_source) = grids.model_shape, grids.source_shape
        return cls(_AxisCells.of(y_model, y_source), _AxisCells.of(x_model, x_source))

    def classes(self, plane: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Class (Y, X) of every source voxel, from logits (C, Y, X) on the model's plane."""
        cells = highest_class(plane)
        if self.y.step:
            cells = np.where(cells[:-1] == cells[1:], cells[:-1], np.uint8(_MIXED))
        if self.x.step:
            cells = np.where(cells[:, :-1] == cells[:, 1:], cells[:, :-1], np.uint8(_MIXED))
        classes = cells.take(self.x.lower, axis=1).take(self.y.lower, axis=0)
        mixed = np.flatnonzero(classes == _MIXED)
        classes.ravel()[mixed] = highest_class(self._interpolate(plane, mixed))
        return classes

    def _interpolate(self, plane: NDArray[np.float32], voxels: NDArray[np.intp]) -> NDArray[np.float32]:
        """Logits (C, n) of the source voxels with these flat indices."""
        width = plane.shape[2]
        flat = plane.reshape(len(plane), -1)
        y, x = np.divmod(voxels, len(self.x.lower))
        corner = self.y.lower[y] * width + self.x.lower[x]
        (above, below), (left, right) = self.y.weights[:, y], self.x.weights[:, x]
        upper = left * flat.take(corner, axis=1) + right * flat.take(corner + self.x.step, axis=1)
        corner += self.y.step * width
        lower = left * flat.take(corner, axis=1) + right * flat.take(corner + self.x.step, axis=1)
        interpolated: NDArray[np.float32] = above * upper + below * lower
        return interpolated


def highest_class(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Class of highest logit along the first axis, the first of equal ones; many times faster than ``argmax``.

    Args:
        logits: (C, ...), float32.

    Returns:
        Array of the shape without C, uint8.
    """
    highest = logits[0].copy()
    classes = np.zeros(highest.shape, np.uint8)
    for index, logit in enumerate(logits[1:], start=1):
        np.copyto(classes, np.uint8(index), where=logit > highest)
        np.maximum(highest, logit, out=highest)
    return classes
