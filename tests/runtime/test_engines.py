"""Both engines compute the same network, and refuse in one sentence what they cannot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from phantom import TILE_SHAPE, pointwise_logits

from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.engines import available_engines, engine_candidates, open_engine
from covidseg_runtime.engines.engine import Engine, describe_engine
from covidseg_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from covidseg_runtime.engines.openvino_engine import OpenVinoEngine
from covidseg_runtime.errors import EngineError

OpenOn = Callable[[Path], Engine]
BOTH = pytest.mark.parametrize("kind", [OpenVinoEngine, OnnxRuntimeEngine])


def _tiles(count: int) -> NDArray[np.float32]:
    shape = (count, 1, *TILE_SHAPE)
    return np.random.default_rng(7).uniform(-10, 2, shape).astype(np.float32)


@BOTH
@pytest.mark.parametrize("count", [1, 3])
def test_logits_are_those_of_the_network(kind: OpenOn, count: int, tiny_bundle: Path) -> None:
    engine = kind(tiny_bundle / "model.onnx")
    tiles = _tiles(count)
    logits = engine.predict(tiles)
    assert logits.dtype == np.float32
    assert logits.shape == (count, 4, *TILE_SHAPE)
    np.testing.assert_allclose(logits, pointwise_logits(tiles), rtol=0, atol=1e-5)
    engine.close()


@BOTH
def test_a_result_is_not_changed_by_the_next_call(kind: OpenOn, tiny_bundle: Path) -> None:
    engine = kind(tiny_bundle / "model.onnx")
    tiles = _tiles(1)
    first = engine.predict(tiles)
    kept = first.copy()
    engine.predict(np.zeros_like(tiles))
    np.testing.assert_array_equal(first, kept)


@BOTH
def test_tiles_that_are_a_view_give_the_same(kind: OpenOn, tiny_bundle: Path) -> None:
    engine = kind(tiny_bundle / "model.onnx")
    tiles = _tiles(1)[..., ::-1]
    np.testing.assert_array_equal(engine.predict(tiles), engine.predict(tiles.copy()))


@BOTH
def test_tiles_of_another_shape_are_refused(kind: OpenOn, tiny_bundle: Path) -> None:
    engine = kind(tiny_bundle / "model.onnx")
    with pytest.raises(EngineError, match=r"\(1, 1, 8, 8, 8\)"):
        engine.predict(np.zeros((1, 1, 8, 8, 8), np.float32))


@BOTH
def test_a_closed_engine_says_so(kind: OpenOn, tiny_bundle: Path) -> None:
    engine = kind(tiny_bundle / "model.onnx")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.predict(_tiles(1))


@BOTH
def test_a_file_that_is_no_network_is_refused(kind: OpenOn, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(EngineError, match=r"refuses broken\.onnx"):
        kind(path)


def test_threads_can_be_limited(tiny_bundle: Path) -> None:
    model = tiny_bundle / "model.onnx"
    for engine in (OpenVinoEngine(model, threads=1), OnnxRuntimeEngine(model, threads=1)):
        assert engine.predict(_tiles(1)).shape == (1, 4, *TILE_SHAPE)


def test_threads_whose_number_is_given_take_any_core(tiny_bundle: Path) -> None:
    """Pinned, the threads of every process on a machine would take the first cores."""
    compiled = OpenVinoEngine(tiny_bundle / "model.onnx", threads=1)._request.get_compiled_model()
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_what_computes_is_told(tiny_bundle: Path) -> None:
    model = tiny_bundle / "model.onnx"
    expected = {"device": "cpu", "precision": "f32", "threads": 1, "batch": 1}
    openvino, onnxruntime = {"name": "openvino", "provider": None}, {"name": "onnxruntime"}
    assert describe_engine(OpenVinoEngine(model, threads=1)) == {**openvino, **expected}
    assert describe_engine(OnnxRuntimeEngine(model, threads=1)) == {
        **onnxruntime,
        "provider": "CPUExecutionProvider",
        **expected,
    }
    left_to_the_engine = describe_engine(OpenVinoEngine(model))["threads"]
    assert isinstance(left_to_the_engine, int), "OpenVINO tells how many it took"
    assert left_to_the_engine >= 1
    assert describe_engine(OnnxRuntimeEngine(model))["threads"] is None, "ONNX Runtime does not tell"


def test_an_unknown_precision_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="precision 'int3' is unknown"):
        OpenVinoEngine(tiny_bundle / "model.onnx", precision="int3")


@pytest.mark.parametrize(
    ("package", "kind", "message"),
    [
        ("openvino", OpenVinoEngine, "pip install openvino"),
        ("onnxruntime", OnnxRuntimeEngine, r"pip install 'covidseg\[ort\]'"),
    ],
)
def test_a_missing_package_is_named_with_its_pip_line(
    monkeypatch: pytest.MonkeyPatch, package: str, kind: OpenOn, message: str, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=message):
        kind(tmp_path / "model.onnx")
    infos = {info.name: info for info in available_engines()}
    assert infos[package].version is None
    assert infos[package].problem is not None


def test_auto_on_the_cpu_is_openvino_in_float32(tiny_bundle: Path) -> None:
    engine = open_engine(load_bundle(tiny_bundle), device="cpu")
    assert (engine.name, engine.precision) == ("openvino", "f32")


def test_auto_falls_back_to_onnx_runtime(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    engine = open_engine(load_bundle(tiny_bundle), device="cpu")
    assert (engine.name, engine.precision) == ("onnxruntime", "f32")


def test_without_any_engine_every_reason_is_given(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="OpenVINO cannot be loaded.*ONNX Runtime cannot"):
        open_engine(load_bundle(tiny_bundle))


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(EngineError, match="unknown"):
        engine_candidates("auto", device)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(EngineError, match="engine 'torch' is unknown"):
        engine_candidates("torch", "cpu")


def test_openvino_on_a_cuda_device_is_refused() -> None:
    with pytest.raises(EngineError, match="openvino does not run on cuda:1"):
        engine_candidates("openvino", "cuda:1")


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:0", 0), ("cuda:3", 3)])
def test_a_cuda_device_is_onnx_runtime_and_nothing_else(device: str, number: int) -> None:
    (choice,) = engine_candidates("auto", device)
    assert (choice.name, choice.cuda_device) == ("onnxruntime", number)


def test_a_gpu_asked_for_by_name_is_never_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    import onnxruntime

    cpu_only = lambda: ["CPUExecutionProvider"]  # noqa: E731
    monkeypatch.setattr(onnxruntime, "get_available_providers", cpu_only)
    with pytest.raises(EngineError, match="without CUDA"):
        open_engine(load_bundle(tiny_bundle), device="cuda:0")
