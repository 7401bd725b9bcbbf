"""Tiles: where they lie, how much each voxel of them counts, and the memory-bounded sum of their logits."""

from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import SettingsError

Shape = tuple[int, int, int]
Average = Literal["logits", "probabilities"]
AVERAGES: tuple[Average, ...] = ("logits", "probabilities")
LARGEST_SIGMA = 10.0  # every voxel counts the same
F32_SHARE = 0.75  # of the largest tile's voxels: see `fit_tiles`
SHORTEST_SHARE = 2 / 3  # of the plan's tile: what a voxel needs to see around it


@dataclass(frozen=True)
class TileFit:
    """What other tiles a network takes.

    Only a network that answers a voxel alike whatever lies far from it takes others: nothing in it sums over the tile.

    Attributes:
        multiple_of: Every length (z, y, x) must be a multiple of these: the network's total stride.
        largest_voxels: Voxels of a tile at most, in f32 three quarters of them; memory grows with them.
    """

    multiple_of: Shape
    largest_voxels: int

    def __post_init__(self) -> None:
        """Refuse lengths and volumes that are none."""
        if len(self.multiple_of) != 3 or min(self.multiple_of) < 1 or self.largest_voxels < 1:
            raise SettingsError(
                f"fit has multiple_of {self.multiple_of} and largest_voxels {self.largest_voxels}: expected positive "
                "numbers."
            )


@dataclass(frozen=True)
class TilePlan:
    """How an image is cut into tiles.

    Attributes:
        tile_shape: Voxels (z, y, x) of a tile; fixed by the exported network.
        step: Largest distance of neighbouring tiles as a share of the tile, above 0 and at most 1.
        importance_sigma: Sigma of the Gaussian by which a tile's voxels count, as a share of the tile. Instance
            normalisation makes an answer depend on what its tile holds, so how tiles are merged matters.
        average: What is averaged where tiles overlap.
        fit: What other tiles the network takes; None if no other.
    """

    tile_shape: Shape
    step: float
    importance_sigma: float = 0.125
    average: Average = "logits"
    fit: TileFit | None = None

    def __post_init__(self) -> None:
        """Refuse tiles without voxels and steps that would leave gaps."""
        if not 0 < self.importance_sigma <= LARGEST_SIGMA:
            raise SettingsError(
                f"importance_sigma is {self.importance_sigma}: expected a number above 0 and at most {LARGEST_SIGMA}."
            )
        if self.average not in AVERAGES:
            raise SettingsError(f"average is {self.average!r}: expected one of {', '.join(AVERAGES)}.")
        if len(self.tile_shape) != 3 or min(self.tile_shape) < 1:
            raise SettingsError(f"tile_shape is {self.tile_shape}: expected three positive numbers.")
        if not 0 < self.step <= 1:
            raise SettingsError(f"step is {self.step}: expected a number above 0 and at most 1.")

    def describe(self) -> dict[str, Any]:
        """The plan as ``bundle.json`` has it."""
        plain: dict[str, Any] = {
            "tile_shape": list(self.tile_shape),
            "step": self.step,
            "importance_sigma": self.importance_sigma,
            "average": self.average,
        }
        if self.fit is not None:
            plain["fit"] = {"multiple_of": list(self.fit.multiple_of), "largest_voxels": self.fit.largest_voxels}
        return plain


@dataclass(frozen=True)
class Tile:
    """A box of an image.

    Attributes:
        start: First voxel (z, y, x).
        shape: Voxels (z, y, x); smaller than the plan's tile where the image is smaller.
    """

    start: Shape
    shape: Shape

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the tile in a (Z, Y, X) array."""
        z, y, x = (slice(s, s + n) for s, n in zip(self.start, self.shape, strict=True))
        return z, y, x


def tile_starts(length: int, tile: int, step: float) -> tuple[int, ...]:
    """First voxels of tiles along one axis, evenly spread, the last one ending with the axis.

    A length of 200, a tile of 96 and a step of 0.75 (72 voxels) give 0, 52, 104: as few tiles as the step allows.
    An axis no longer than the tile has one tile at 0.
    """
    if length <= tile:
        return (0,)
    last = length - tile
    gaps = int(np.ceil(last / max(1.0, tile * step)))
    return tuple(round(last * index / gaps) for index in range(gaps + 1))


def grid_tiles(image_shape: Shape, plan: TilePlan) -> tuple[Tile, ...]:
    """All tiles of an image, in the order of their first slice."""
    starts = (tile_starts(n, t, plan.step) for n, t in zip(image_shape, plan.tile_shape, strict=True))
    z, y, x = (min(n, t) for n, t in zip(image_shape, plan.tile_shape, strict=True))
    z_starts, y_starts, x_starts = starts
    return tuple(Tile((i, j, k), (z, y, x)) for i in z_starts for j in y_starts for k in x_starts)


def fit_tiles(image_shape: Shape, plan: TilePlan, precision: str) -> TilePlan:
    """The plan with the tile that costs the network the fewest voxels on an image of this shape.

    A tile of fixed shape hangs over an image that is a little wider than one or two of it. A length is at least two
    thirds of the plan's tile, or that of the image if it is shorter; the step stays.

    Args:
        image_shape: (Z, Y, X) on the model's grid.
        plan: As the bundle has it.
        precision: What the engine computes in: "f32" needs twice the memory that others need for each
            voxel, and its tiles are that much smaller that a common scan stays below 800 MB.
    """
    if plan.fit is None:
        return plan
    largest = plan.fit.largest_voxels * (F32_SHARE if precision == "f32" else 1)
    lengths = [
        _lengths(n, tile, unit)
        for n, tile, unit in zip(image_shape, plan.tile_shape, plan.fit.multiple_of, strict=True)
    ]
    shapes = [(z, y, x) for z, y, x in product(*lengths) if z * y * x <= largest]
    if not shapes:
        return replace(plan, fit=None)
    return min((replace(plan, tile_shape=shape, fit=None) for shape in shapes), key=lambda one: _cost(image_shape, one))


def _lengths(image: int, tile: int, unit: int) -> range:
    """Lengths of a tile along one axis, up to a single one over the whole image."""
    longest = ceil(image / unit) * unit
    shortest = min(longest, ceil(tile * SHORTEST_SHARE / unit) * unit)
    return range(shortest, longest + 1, unit)


def _cost(image_shape: Shape, plan: TilePlan) -> tuple[int, int, Shape]:
    """Voxels that the network sees, then the number of tiles, then the shape, so that the choice is always the same."""
    count = prod(len(tile_starts(n, tile, plan.step)) for n, tile in zip(image_shape, plan.tile_shape, strict=True))
    return count * prod(plan.tile_shape), count, plan.tile_shape


def gaussian_importance(tile_shape: Shape, sigma: float = 0.125) -> NDArray[np.float32]:
    """Weight of each voxel of a tile: a Gaussian about its centre.

    Args:
        tile_shape: Voxels (z, y, x).
        sigma: As a share of the tile; an eighth is nnU-Net's.

    Returns:
        Array of ``tile_shape``, float32, greatest value 1, smallest 1e-3: positive everywhere, so that a voxel
        which only a tile's corner covers keeps its logits in float32.
    """
    profiles = []
    for n in tile_shape:
        distance = (np.arange(n) - (n - 1) / 2) / (n * sigma)
        profiles.append(np.exp(-0.5 * distance**2))
    z, y, x = profiles
    importance = z[:, None, None] * y[None, :, None] * x[None, None, :]
    weights: NDArray[np.float32] = np.maximum(importance / importance.max(), 1e-3).astype(np.float32)
    return weights


class SlabAccumulator:
    """Weighted sum of tile logits that keeps only the slices later tiles still touch.

    Tiles must come in the order of their first slice. Slices are given out once, as soon as no later tile can
    change them; the buffer is one tile high however long the image is.
    """

    def __init__(self, classes: int, image_shape: Shape, tile_shape: Shape) -> None:
        """Reserve the buffer: (C, z of a tile, Y, X) float32 and its weights."""
        height = min(tile_shape[0], image_shape[0])
        self._logits = np.zeros((classes, height, *image_shape[1:]), np.float32)
        self._weights = np.zeros((height, *image_shape[1:]), np.float32)
        self._depth = image_shape[0]
        self._first = 0

    def add(self, tile: Tile, logits: NDArray[np.float32], importance: NDArray[np.float32]) -> None:
        """Add the logits (C, z, y, x) of a tile, weighted by ``importance`` (z, y, x)."""
        _, rows, columns = tile.slices
        slices = slice(tile.start[0] - self._first, tile.start[0] - self._first + tile.shape[0])
        for total, one_class in zip(self._logits, logits, strict=True):
            total[slices, rows, columns] += one_class * importance
        self._weights[slices, rows, columns] += importance

    def finished_before(self, z: int) -> tuple[int, NDArray[np.float32]] | None:
        """Give out the slices below ``z``, which no later tile touches.

        Returns:
            First slice and mean logits (C, slices, Y, X), a copy; None if there are none.
        """
        count = min(z, self._depth) - self._first
        if count <= 0:
            return None
        start = self._first
        finished = self._logits[:, :count] / self._weights[:count]
        self._shift(count)
        return start, finished

    def _shift(self, count: int) -> None:
        for buffer, axis in ((self._logits, 1), (self._weights, 0)):
            view = np.moveaxis(buffer, axis, 0)
            kept = view.shape[0] - count
            # Slice by slice: source and target overlap, and a whole copy would double the memory.
            for index in range(kept):
                view[index] = view[index + count]
            view[kept:] = 0
        self._first += count
