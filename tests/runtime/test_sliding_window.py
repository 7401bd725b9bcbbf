"""Tiles go to the engine in batches, and the batch changes nothing but the number of calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from covidseg_runtime.engines.openvino_engine import OpenVinoEngine
from covidseg_runtime.errors import EngineError
from covidseg_runtime.sliding_window import predict_tiled
from covidseg_runtime.tiling import TilePlan, grid_tiles

PLAN = TilePlan((16, 16, 16), 0.5)
IMAGE = np.random.default_rng(5).normal(size=(20, 24, 23)).astype(np.float32)  # 2·2·2 tiles
SMALL = np.asfortranarray(IMAGE[:9, :, :10])  # lower and narrower than a tile: 2 tiles
BATCHES = pytest.mark.parametrize("batch", [2, 3, 5, 100])


def _in_place(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits that depend on a voxel's value and on its place in the tile: what is mixed up or turned wrongly shows."""
    place = np.arange(tiles[0].size, dtype=np.float32).reshape(tiles.shape[1:]) / tiles[0].size
    return np.concatenate((tiles * (1 + place), place - tiles), axis=1)


def _logits(engine: Engine, image: NDArray[np.float32], mirror_axes: tuple[int, ...] = ()) -> NDArray[np.float32]:
    slabs = list(predict_tiled(engine, image, PLAN, lambda cut: cut, mirror_axes=mirror_axes))
    return np.concatenate([slab.logits for slab in slabs], axis=1)


@BATCHES
@pytest.mark.parametrize("mirror_axes", [(), (2,), (0, 1, 2)])
@pytest.mark.parametrize("image", [IMAGE, SMALL], ids=["image", "small"])
def test_every_batch_gives_the_bits_of_single_tiles(
    image: NDArray[np.float32], mirror_axes: tuple[int, ...], batch: int
) -> None:
    sizes = []

    def predict(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        assert tiles.flags.c_contiguous
        sizes.append(len(tiles))
        return _in_place(tiles)

    engine = PointwiseEngine(predict)
    engine.batch = batch
    found = _logits(engine, image, mirror_axes)
    np.testing.assert_array_equal(found, _logits(PointwiseEngine(_in_place), image, mirror_axes))
    full, rest = divmod(len(grid_tiles(image.shape, PLAN)) * (1 + len(mirror_axes)), batch)
    assert sizes == [batch] * full + [rest] * (rest > 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3x3x3 convolution and a normalisation over the tile: an answer depends on neighbours and on the whole tile."""
    draw, float32 = np.random.default_rng(3), onnx.TensorProto.FLOAT
    values = {
        "weight": draw.normal(size=(4, 1, 3, 3, 3)),
        "scale": draw.normal(size=4),
        "shift": draw.normal(size=4),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["tiles", "weight"], ["features"], pads=[1] * 6),
            helper.make_node("InstanceNormalization", ["features", "scale", "shift"], ["logits"]),
        ],
        "network",
        [helper.make_tensor_value_info("tiles", float32, ["n", 1, *PLAN.tile_shape])],
        [helper.make_tensor_value_info("logits", float32, ["n", 4, *PLAN.tile_shape])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("mirror_axes", [(), (2,)])
@pytest.mark.parametrize("kind", [OpenVinoEngine, OnnxRuntimeEngine])
def test_real_engines_label_the_same_in_batches_of_three(kind: type, mirror_axes: tuple[int, ...], model: Path) -> None:
    """8 tiles or 16 with their mirror images: the last batch holds 2 or 1."""
    engine = kind(model)
    assert engine.batch == 1
    alone = _logits(engine, IMAGE, mirror_axes)
    engine.batch = 3
    together = _logits(engine, IMAGE, mirror_axes)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(together.argmax(axis=0), alone.argmax(axis=0))
    assert np.ptp(alone) > 1


def test_no_more_than_a_batch_is_prepared_ahead_and_progress_counts_every_tile() -> None:
    prepared, seen = [], []

    def prepare(cut: NDArray[np.float32]) -> NDArray[np.float32]:
        prepared.append(cut.shape)
        return cut

    def on_tile(done: int, total: int) -> None:
        seen.append((done, total, len(prepared)))

    engine = PointwiseEngine(_in_place)
    engine.batch = 3
    list(predict_tiled(engine, IMAGE, PLAN, prepare, on_tile=on_tile))
    assert seen == [(done, 8, min(3 * -(-done // 3), 8)) for done in range(1, 9)]


def test_an_engine_that_loses_a_tile_is_refused() -> None:
    engine = PointwiseEngine(lambda tiles: _in_place(tiles)[:2])
    engine.batch = 3
    with pytest.raises(EngineError, match="fake-pointwise gives 2 tiles of logits for 3 tiles"):
        _logits(engine, IMAGE)
