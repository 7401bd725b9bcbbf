"""ONNX Runtime's bound batches give the network's logits, and a GPU that cannot be used is never replaced in silence.

Binding is the same code on a CPU and on a GPU; here it runs on the CPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from phantom import TILE_SHAPE, pointwise_logits

from covidseg_runtime.engines import onnxruntime_engine
from covidseg_runtime.engines.onnxruntime_engine import CPU_PROVIDER, CUDA_PROVIDER, OnnxRuntimeEngine
from covidseg_runtime.errors import EngineError, SettingsError

without_cuda = pytest.mark.skipif(
    CUDA_PROVIDER in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)


@pytest.fixture
def model(tiny_bundle: Path) -> Path:
    return tiny_bundle / "model.onnx"


@pytest.fixture
def cuda_build_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime says it has CUDA, and finds none when a session is made: as a CUDA build does without a GPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])


def _tiles(count: int, seed: int = 7) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-10, 2, (count, 1, *TILE_SHAPE)).astype(np.float32)


def _assert_right(engine: OnnxRuntimeEngine, tiles: NDArray[np.float32]) -> None:
    logits = engine.predict(tiles)
    assert (logits.dtype, logits.shape) == (np.float32, (len(tiles), 4, *TILE_SHAPE))
    np.testing.assert_allclose(logits, pointwise_logits(tiles), rtol=0, atol=1e-5)


@pytest.mark.parametrize("max_batch", [None, 1, 2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_batches_and_a_smaller_last_one_give_every_tile_its_logits(
    model: Path, count: int, max_batch: int | None
) -> None:
    _assert_right(OnnxRuntimeEngine(model, max_batch=max_batch), _tiles(count))


def test_one_engine_takes_batches_of_any_size_in_any_order(model: Path) -> None:
    engine = OnnxRuntimeEngine(model, max_batch=4)
    for seed, count in enumerate((4, 1, 3, 4, 2, 9)):
        _assert_right(engine, _tiles(count, seed))


def test_a_result_is_the_callers_own(model: Path) -> None:
    engine = OnnxRuntimeEngine(model, max_batch=4)
    first = engine.predict(_tiles(3, seed=1))
    kept = first.copy()
    second = engine.predict(_tiles(3, seed=2))
    np.testing.assert_array_equal(first, kept)
    second[:] = 0
    np.testing.assert_array_equal(engine.predict(_tiles(3, seed=1)), kept)


def test_tiles_are_not_changed_and_may_be_a_view_of_another_type(model: Path) -> None:
    tiles = _tiles(3).astype(np.float64)[..., ::-1]
    kept = tiles.copy()
    logits = OnnxRuntimeEngine(model, max_batch=2).predict(tiles)
    np.testing.assert_allclose(logits, pointwise_logits(kept.astype(np.float32)), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(tiles, kept)


def _convolutions() -> bytes:
    """Two 3x3x3 convolutions with a normalisation between them: sums long enough to depend on their order."""
    draw = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["tiles", "first"], ["features"], pads=[1] * 6),
        helper.make_node("InstanceNormalization", ["features", "scale", "shift"], ["normal"]),
        helper.make_node("Conv", ["normal", "second"], ["logits"], pads=[1] * 6),
    ]
    values = {
        "first": draw.normal(size=(16, 1, 3, 3, 3)),
        "scale": draw.normal(size=16),
        "shift": draw.normal(size=16),
        "second": draw.normal(size=(4, 16, 3, 3, 3)),
    }
    return _network(nodes, [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()])


def _network(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    *,
    type_: int = onnx.TensorProto.FLOAT,
    tile_shape: tuple[int | str, ...] = TILE_SHAPE,
) -> bytes:
    inputs = [helper.make_tensor_value_info("tiles", type_, ["n", 1, *tile_shape])]
    outputs = [helper.make_tensor_value_info("logits", type_, ["n", 4, *tile_shape])]
    graph = helper.make_graph(nodes, "network", inputs, outputs, initializers)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(network.SerializeToString())


def test_logits_are_the_same_bytes_for_every_run_and_number_of_threads(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_convolutions())
    tiles = _tiles(2)
    alone = OnnxRuntimeEngine(path, threads=1)
    expected = alone.predict(tiles).tobytes()
    assert alone.predict(tiles).tobytes() == expected
    for threads in (1, 2, 3):
        assert OnnxRuntimeEngine(path, threads=threads).predict(tiles).tobytes() == expected


def test_a_closed_engine_says_so_also_after_batches_were_bound(model: Path) -> None:
    engine = OnnxRuntimeEngine(model, max_batch=2)
    engine.predict(_tiles(2))
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.predict(_tiles(2))


def test_the_provider_that_computes_and_the_precision_of_the_graph_are_told(model: Path) -> None:
    engine = OnnxRuntimeEngine(model, precision="f16")
    assert (engine.provider, engine.precision) == ("CPUExecutionProvider", "f16")
    assert OnnxRuntimeEngine(model).precision == "f32"


@without_cuda
def test_a_build_without_cuda_is_refused_with_the_line_that_installs_it(model: Path) -> None:
    with pytest.raises(EngineError, match=r"built without CUDA.*pip install 'covidseg\[gpu\]'"):
        OnnxRuntimeEngine(model, cuda_device=0)


@without_cuda
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider':UserWarning")
def test_without_a_gpu_the_silent_step_to_the_cpu_is_an_error(
    model: Path, cuda_build_without_gpu: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError, match=r"cannot compute model\.onnx on cuda:1 alone .*covidseg\[gpu\]"):
        OnnxRuntimeEngine(model, cuda_device=1)
    assert capfd.readouterr().out == ""


@without_cuda
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider':UserWarning")
def test_the_cpu_takes_over_where_the_caller_asks_for_that(model: Path, cuda_build_without_gpu: None) -> None:
    engine = OnnxRuntimeEngine(model, cuda_device=0, on_missing_gpu="use-cpu")
    assert engine.provider == CPU_PROVIDER
    _assert_right(engine, _tiles(5))


@without_cuda
def test_the_cpu_takes_over_from_a_build_without_cuda_too(model: Path) -> None:
    engine = OnnxRuntimeEngine(model, cuda_device=0, on_missing_gpu="use-cpu")
    assert engine.provider == CPU_PROVIDER


@pytest.mark.skipif(
    "AzureExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs a provider that is there and computes none of the operators",
)
def test_operators_that_the_provider_leaves_to_the_cpu_are_an_error(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_engine, "CUDA_PROVIDER", "AzureExecutionProvider")
    with pytest.raises(EngineError, match="alone .*nodes that are assigned to the default CPU EP"):
        OnnxRuntimeEngine(model, cuda_device=0)


def test_settings_without_meaning_are_refused(model: Path) -> None:
    with pytest.raises(SettingsError, match="max_batch is 0: expected 1 or more"):
        OnnxRuntimeEngine(model, max_batch=0)
    with pytest.raises(EngineError, match="precision 'fp16' is unknown"):
        OnnxRuntimeEngine(model, precision="fp16")


@pytest.mark.parametrize(
    ("type_", "tile_shape", "message"),
    [
        (onnx.TensorProto.FLOAT16, TILE_SHAPE, r"its tiles is tensor\(float16\)"),
        (onnx.TensorProto.FLOAT, ("z", "y", "x"), r"of shape \['n', 1, 'z', 'y', 'x'\]; expected float32"),
    ],
)
def test_a_graph_that_no_buffer_can_be_bound_to_is_refused(
    tmp_path: Path, type_: int, tile_shape: tuple[int | str, ...], message: str
) -> None:
    path = tmp_path / "model.onnx"
    weight = helper.make_tensor("weight", type_, [4, 1, 1, 1, 1], [1.0, 2.0, 3.0, 4.0])
    node = helper.make_node("Mul", ["tiles", "weight_5d"], ["logits"])
    reshape = helper.make_node("Reshape", ["weight", "shape"], ["weight_5d"])
    shape = numpy_helper.from_array(np.array([1, 4, 1, 1, 1]), "shape")
    path.write_bytes(_network([reshape, node], [weight, shape], type_=type_, tile_shape=tile_shape))
    with pytest.raises(EngineError, match=message):
        OnnxRuntimeEngine(path)
