"""Tiled prediction of a whole image, handed out slab by slab."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.errors import EngineError
from covidseg_runtime.tiling import Shape, SlabAccumulator, Tile, TilePlan, fit_tiles, gaussian_importance, grid_tiles


@dataclass(frozen=True, eq=False)
class LogitSlab:
    """Finished slices of logits, or of what else the plan averages.

    Attributes:
        start: First slice z on the image's grid.
        logits: (C, z, Y, X) float32; probabilities where the plan averages those.
    """

    start: int
    logits: NDArray[np.float32]


def fit_to_engine(plan: TilePlan, engine: Engine, image_shape: Shape) -> TilePlan:
    """The plan fitted to an image (Z, Y, X) where the engine takes any tile, otherwise the plan itself."""
    return fit_tiles(image_shape, plan, engine.precision) if engine.any_tile else plan


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
        engine: The network; it is given ``engine.batch`` tiles at once, mirror images counted, fewer at the end.
        image: (Z, Y, X) of any type; only a tile of it is converted at a time. Smaller than a tile is fine: the
            border voxel is repeated, and what was added is cut off again.
        plan: Tile shape and step.
        prepare: Turns a cut of the image into what the network sees, float32 of the same shape.
        mirror_axes: Axes (0 z, 1 y, 2 x), each of which is mirrored for one more prediction; the mean counts.
        on_tile: Called after each tile with (tiles done, tiles in total), so for those of a batch in a row. If it
            raises, the rest of the batch is dropped and the engine is not called again.

    Yields:
        Slabs in order that cover every slice once. Memory holds one tile's height of logits, and a batch of tiles
        and of their logits, whatever the length of the image.

    Raises:
        EngineError: If the engine fails, or gives another number of tiles than it was given.
    """
    z, y, x = image.shape
    tiles = grid_tiles((z, y, x), plan)
    importance = gaussian_importance(plan.tile_shape, plan.importance_sigma)[tuple(slice(n) for n in tiles[0].shape)]
    cuts = _cut_and_mirror(tiles, lambda tile: prepare(image[tile.slices]), mirror_axes)
    predictions = _predict_in_batches(engine, cuts, plan.tile_shape)
    accumulator: SlabAccumulator | None = None
    for done, tile in enumerate(tiles):
        logits = _mean_of_mirrored(predictions, mirror_axes)
        if plan.average == "probabilities":
            logits = softmax(logits)
        if accumulator is None:
            accumulator = SlabAccumulator(logits.shape[0], (z, y, x), plan.tile_shape)
        accumulator.add(tile, logits, importance)
        del logits  # a view of the whole batch, which would lie beside the next one
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


def _cut_and_mirror(
    tiles: tuple[Tile, ...], cut: Callable[[Tile], NDArray[np.float32]], mirror_axes: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    """What the network is to see (z, y, x): each tile, followed by its mirror images."""
    for tile in tiles:
        seen = cut(tile)
        yield seen
        for axis in mirror_axes:
            yield np.flip(seen, axis)


def _predict_in_batches(
    engine: Engine, cuts: Iterator[NDArray[np.float32]], tile_shape: Shape
) -> Iterator[NDArray[np.float32]]:
    """Logits (C, z, y, x) of each cut (z, y, x), which is padded to the tile's shape for the engine and cut back."""
    while batch := list(islice(cuts, engine.batch)):
        z, y, x = batch[0].shape  # all tiles of an image have one shape
        padding = [(0, full - n) for n, full in zip((z, y, x), tile_shape, strict=True)]
        padded = [np.pad(cut, padding, mode="edge") if any(after for _, after in padding) else cut for cut in batch]
        logits = engine.predict(np.ascontiguousarray(np.stack(padded)[:, None], np.float32))
        if len(logits) != len(batch):
            raise EngineError(f"the engine {engine.name} gives {len(logits)} tiles of logits for {len(batch)} tiles")
        yield from logits[:, :, :z, :y, :x]
        del logits


def _mean_of_mirrored(predictions: Iterator[NDArray[np.float32]], mirror_axes: tuple[int, ...]) -> NDArray[np.float32]:
    """Mean logits (C, z, y, x) of the next tile and its mirror images, each turned back."""
    logits = next(predictions)
    if not mirror_axes:
        return logits
    total = logits.copy()
    for axis in mirror_axes:
        total += np.flip(next(predictions), axis + 1)
    return total / np.float32(len(mirror_axes) + 1)


def _next_start(tiles: tuple[Tile, ...], done: int, depth: int) -> int:
    """First slice that tiles after number ``done`` touch; the depth of the image after the last."""
    return tiles[done + 1].start[0] if done + 1 < len(tiles) else depth
