import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.errors import SettingsError
from covidseg_runtime.sliding_window import predict_tiled
from covidseg_runtime.tiling import (
    SlabAccumulator,
    TileFit,
    TilePlan,
    fit_tiles,
    gaussian_importance,
    grid_tiles,
    tile_starts,
)

shapes = st.tuples(*[st.integers(1, 23)] * 3)
tile_shapes = st.tuples(*[st.integers(1, 12)] * 3)
steps = st.floats(0.2, 1.0)
IDENTITY = PointwiseEngine(lambda tiles: np.concatenate((tiles, -tiles), axis=1))


def whole_sum(engine, image, plan):
    """The same sum with buffers of the whole image: what the slabs must equal bit for bit."""
    importance = gaussian_importance(plan.tile_shape)
    total, weights = np.zeros((2, *image.shape), np.float32), np.zeros(image.shape, np.float32)
    for tile in grid_tiles(image.shape, plan):
        padding = [(0, full - n) for n, full in zip(tile.shape, plan.tile_shape, strict=True)]
        logits = engine.predict(np.pad(image[tile.slices], padding, mode="edge")[None, None])[0]
        z, y, x = tile.shape
        total[(slice(None), *tile.slices)] += logits[:, :z, :y, :x] * importance[:z, :y, :x]
        weights[tile.slices] += importance[:z, :y, :x]
    return total / weights


@given(shapes, tile_shapes, steps)
@settings(max_examples=60, deadline=None)
def test_slabs_give_the_identity_back_and_equal_the_whole_bit_for_bit(shape, tile_shape, step):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    plan = TilePlan(tile_shape, step)
    slabs = list(predict_tiled(IDENTITY, image, plan, lambda cut: cut))
    assert [slab.start for slab in slabs] == list(np.cumsum([0, *(slab.logits.shape[1] for slab in slabs[:-1])]))
    logits = np.concatenate([slab.logits for slab in slabs], axis=1)
    assert np.array_equal(logits, whole_sum(IDENTITY, image, plan))
    assert np.allclose(logits[0], image, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 300), st.integers(1, 100), steps)
@settings(max_examples=200, deadline=None)
def test_starts_cover_the_axis_without_gaps(length, tile, step):
    starts = tile_starts(length, tile, step)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tile)
    assert all(0 < b - a <= max(1, tile * step) + 1 for a, b in zip(starts, starts[1:], strict=False))


def test_starts_of_the_documented_example():
    assert tile_starts(200, 96, 0.75) == (0, 52, 104)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 5, 6), (96, 96, 96)])
def test_importance_is_positive_everywhere_and_greatest_in_the_middle(shape):
    importance = gaussian_importance(shape)
    assert importance.dtype == np.float32
    assert importance.min() > 0
    assert importance.max() == importance[tuple(n // 2 for n in shape)] == 1


def test_buffer_is_one_tile_high_however_long_the_image():
    short, long = (SlabAccumulator(4, (n, 20, 20), (8, 8, 8)) for n in (50, 5000))
    assert short._logits.nbytes == long._logits.nbytes == 4 * 8 * 20 * 20 * 4


def test_progress_counts_every_tile():
    seen = []
    plan = TilePlan((4, 4, 4), 0.5)
    image = np.zeros((9, 9, 9), np.float32)
    list(predict_tiled(IDENTITY, image, plan, lambda cut: cut, on_tile=lambda *p: seen.append(p)))
    assert seen == [(i + 1, len(grid_tiles((9, 9, 9), plan))) for i in range(len(seen))]


@pytest.mark.parametrize(("shape", "step"), [((0, 4, 4), 0.5), ((4, 4), 0.5), ((4, 4, 4), 0.0), ((4, 4, 4), 1.5)])
def test_plans_without_sense_are_refused(shape, step):
    with pytest.raises(SettingsError):
        TilePlan(shape, step)


FIT = TilePlan((96, 96, 96), 0.5, fit=TileFit((16, 16, 16), 1_300_000))


def test_a_plan_without_a_fit_stays_what_it_is():
    plan = TilePlan((96, 96, 96), 0.5)
    assert fit_tiles((150, 110, 130), plan, "f32") == plan


def test_fitted_tiles_cost_less_than_fixed_ones_and_keep_the_step():
    image = (150, 110, 130)
    fitted = fit_tiles(image, FIT, "bf16")
    assert (fitted.tile_shape, fitted.step, fitted.fit) == ((80, 112, 144), 0.5, None)
    seen = [len(grid_tiles(image, plan)) * math.prod(plan.tile_shape) for plan in (fitted, replace(FIT, fit=None))]
    assert seen == [3 * 80 * 112 * 144, 3 * 2 * 2 * 96**3]


@pytest.mark.parametrize(("precision", "largest"), [("f32", 975_000), ("bf16", 1_300_000), ("int8", 1_300_000)])
@pytest.mark.parametrize("step", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_a_fitted_tile_is_one_the_network_takes_and_none_is_cheaper(seed, step, precision, largest):
    random = np.random.default_rng(seed)
    z, y, x = (int(n) for n in random.integers(1, 400, 3))
    plan = replace(FIT, step=step)
    fitted = fit_tiles((z, y, x), plan, precision)
    assert math.prod(fitted.tile_shape) <= largest
    for n, length in zip((z, y, x), fitted.tile_shape, strict=True):
        assert length % 16 == 0
        assert length >= min(64, n)
        assert length - n < 16
    fixed = len(grid_tiles((z, y, x), plan)) * 96**3
    assert len(grid_tiles((z, y, x), fitted)) * math.prod(fitted.tile_shape) <= fixed


def test_where_no_other_tile_is_small_enough_the_plan_s_own_is_taken():
    plan = TilePlan((96, 96, 96), 0.5, fit=TileFit((16, 16, 16), 1000))
    assert fit_tiles((150, 110, 130), plan, "f32") == replace(plan, fit=None)


@pytest.mark.parametrize(("multiple_of", "voxels"), [((0, 16, 16), 1000), ((16, 16), 1000), ((16, 16, 16), 0)])
def test_a_fit_without_numbers_is_refused(multiple_of, voxels):
    with pytest.raises(SettingsError, match="expected positive numbers"):
        TileFit(multiple_of, voxels)
