"""Tiled prediction of a whole image, handed out slab by slab."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.tiling import SlabAccumulator, Tile, TilePlan, gaussian_importance, grid_tiles


@dataclass(frozen=True, eq=False)
class LogitSlab:
    """Finished slices of logits, or of what else the plan averages.

    Attributes:
        start: First slice z on the image's grid.
        logits: (C, z, Y, X) float32; probabilities where the plan averages those.
    """

    start: int
    logits: NDArray[np.float32]


def predict_tiled(
    engine: Engine,
    image: NDArray[Any],
    plan: TilePlan,
    prepare: Callable[[NDArray[Any]], NDArray[np.float32]],
    *,
    mirror_axes: tuple[int, ...] = (),
    on_tile: Callable[[int, int], None] | None = None,
) -> Iterator[LogitSlab]:
    """Predict an image tile by tile.

    Args:
        engine: The network.
        image: (Z, Y, X) of any type; only a tile of it is converted at a time. Smaller than a tile is fine: the
            border voxel is repeated, and what was added is cut off again.
        plan: Tile shape and step.
        prepare: Turns a cut of the image into what the network sees, float32 of the same shape.
        mirror_axes: Axes (0 z, 1 y, 2 x), each of which is mirrored for one more prediction; the mean counts.
        on_tile: Called after each tile with (tiles done, tiles in total).

    Yields:
        Slabs in order that cover every slice once. Memory holds one tile's height of logits, whatever the length
        of the image.
    """
    z, y, x = image.shape
    tiles = grid_tiles((z, y, x), plan)
    importance = gaussian_importance(plan.tile_shape, plan.importance_sigma)[tuple(slice(n) for n in tiles[0].shape)]
    accumulator: SlabAccumulator | None = None
    for done, tile in enumerate(tiles):
        logits = _predict_mirrored(engine, prepare(image[tile.slices]), plan, mirror_axes)
        if plan.average == "probabilities":
            logits = softmax(logits)
        if accumulator is None:
            accumulator = SlabAccumulator(logits.shape[0], (z, y, x), plan.tile_shape)
        accumulator.add(tile, logits, importance)
        if on_tile is not None:
            on_tile(done + 1, len(tiles))
        finished = accumulator.finished_before(_next_start(tiles, done, z))
        if finished is not None:
            yield LogitSlab(*finished)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities (C, z, y, x) of logits (C, z, y, x)."""
    shifted: NDArray[np.float32] = np.exp(logits - logits.max(axis=0))
    shifted /= shifted.sum(axis=0)
    return shifted


def _predict_mirrored(
    engine: Engine, tile: NDArray[np.float32], plan: TilePlan, mirror_axes: tuple[int, ...]
) -> NDArray[np.float32]:
    """Mean logits (C, z, y, x) of a tile and its mirror images, each turned back."""
    logits = _predict_tile(engine, tile, plan)
    if not mirror_axes:
        return logits
    total = logits.copy()
    for axis in mirror_axes:
        total += np.flip(_predict_tile(engine, np.flip(tile, axis), plan), axis + 1)
    return total / np.float32(len(mirror_axes) + 1)


def _predict_tile(engine: Engine, tile: NDArray[np.float32], plan: TilePlan) -> NDArray[np.float32]:
    """Logits (C, z, y, x) of one tile, padded to the plan's shape for the engine and cut back."""
    padding = [(0, full - n) for n, full in zip(tile.shape, plan.tile_shape, strict=True)]
    padded = np.pad(tile, padding, mode="edge") if any(after for _, after in padding) else tile
    batch = np.ascontiguousarray(padded, np.float32)[None, None]
    z, y, x = tile.shape
    return engine.predict(batch)[0, :, :z, :y, :x]


def _next_start(tiles: tuple[Tile, ...], done: int, depth: int) -> int:
    """First slice that tiles after number ``done`` touch; the depth of the image after the last."""
    return tiles[done + 1].start[0] if done + 1 < len(tiles) else depth
