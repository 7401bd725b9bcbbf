"""TensorRT's own parser and builder take every graph covidseg exports, and the cache keeps one good plan of each."""

import os
import stat
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tensorrt_harness import GPU, importable_tensorrt

from covidseg_export.precision import to_fp16
from covidseg_export.to_onnx import export_onnx
from covidseg_export.to_tensorrt import (
    WAITING,
    BuilderOptions,
    batch_profile,
    build_plan,
    configure,
    parse_network,
    timing_path,
)
from covidseg_runtime.bundle import default_bundle_path, sha256_of
from covidseg_runtime.engines.plan_cache import TensorRtIdentity, find_plan, read_plan
from covidseg_runtime.errors import BundleError, EngineError, SettingsError
from covidseg_train.hybrid import HybridEncoderUNet
from covidseg_train.unet import UNet3d, UNetSpec

TILE = (16, 16, 8)
FP32 = ("unet", "hybrid")
FP16 = ("unet fp16", "hybrid fp16")


@pytest.fixture(scope="module")
def graphs():
    """Both networks as they are exported: the shipped U-Net, small ones of two levels for the rest."""
    spec = UNetSpec(widths=(4, 8), strides=((2, 2, 1),), supervised_levels=1)
    torch.manual_seed(0)
    unet, hybrid = UNet3d(spec).eval(), HybridEncoderUNet(spec).eval()
    return {
        "unet": (default_bundle_path() / "model.onnx").read_bytes(),
        "hybrid": export_onnx(hybrid, TILE),
        "unet fp16": to_fp16(export_onnx(unet, TILE, normalisation="native")),
        "hybrid fp16": to_fp16(export_onnx(hybrid, TILE, normalisation="native")),
    }


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COVIDSEG_PLAN_CACHE", str(tmp_path / "plans"))
    return tmp_path / "plans"


@pytest.fixture
def tensorrt():
    with importable_tensorrt() as package:
        yield package


@pytest.fixture
def model(tmp_path):
    """A small graph that builds in no time: two convolutions in half, normalisation between them in float."""
    path = tmp_path / "model.onnx"
    path.write_bytes(mixed_graph().SerializeToString())
    return path


def mixed_graph(**change):
    """The graph of `model`, with something wrong if a change is named."""
    weights = {
        "narrow": np.ones((2, 1, 3, 3, 3), change.get("conv", np.float16)),
        "scale": np.ones(2, np.float32),
        "shift": np.zeros(2, np.float32),
        "wide": np.ones((3, 2, 1, 1, 1), np.float16),
    }
    nodes = [
        helper.make_node("Cast", ["tiles"], ["a"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["a", "narrow"], ["b"], pads=[1] * 6),
        helper.make_node("Cast", ["b"], ["c"], to=change.get("norm_input", TensorProto.FLOAT)),
        helper.make_node(change.get("norm", "InstanceNormalization"), ["c", "scale", "shift"], ["d"]),
        helper.make_node("Cast", ["d"], ["e"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["e", "wide"], ["f"]),
        helper.make_node("Cast", ["f"], ["logits"], to=change.get("result", TensorProto.FLOAT)),
    ]
    batch = change.get("batch", "n")
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, [batch, 1, *TILE])],
        [helper.make_tensor_value_info("logits", change.get("result", TensorProto.FLOAT), [batch, 3, *TILE])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def quantised_graph():
    """One convolution of int8 values by int8 weights, the weights scaled channel by channel."""
    values = {
        "weights": np.ones((3, 1, 3, 3, 3), np.int8),
        "scales": np.full(3, 0.01, np.float32),
        "zeros": np.zeros(3, np.int8),
        "scale": np.float32(0.05),
        "zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["tiles", "scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "scale", "zero"], ["b"]),
        helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["c"], axis=0),
        helper.make_node("Conv", ["b", "c"], ["logits"], pads=[1] * 6),
    ]
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, ["n", 1, *TILE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3, *TILE])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@dataclass(frozen=True)
class Layer:
    """A layer of TensorRT's network: its kind and the types of what it gives."""

    kind: str
    gives: tuple[str, ...]


def layers_of(network):
    layers = [network.definition.get_layer(index) for index in range(network.definition.num_layers)]
    return [
        Layer(layer.type.name, tuple(layer.get_output(index).dtype.name for index in range(layer.num_outputs)))
        for layer in layers
    ]


def build(path, options=BuilderOptions(), on_progress=None):  # noqa: B008 - frozen
    return build_plan(path, options, gpu=GPU, on_progress=on_progress)


@pytest.mark.parametrize("name", FP32)
def test_an_fp32_graph_has_no_half_anywhere(tensorrt, graphs, name):
    network = parse_network(tensorrt, graphs[name], name)
    layers = layers_of(network)
    assert network.precision == "f32"
    assert {"CONVOLUTION", "DECONVOLUTION"} <= {layer.kind for layer in layers}
    assert not any("HALF" in layer.gives for layer in layers)


@pytest.mark.parametrize("name", FP16)
def test_an_fp16_graph_convolves_in_half_and_sums_in_float(tensorrt, graphs, name):
    network = parse_network(tensorrt, graphs[name], name)
    layers = layers_of(network)
    convolutions = [layer.gives for layer in layers if layer.kind in {"CONVOLUTION", "DECONVOLUTION"}]
    assert network.precision == "f16"
    assert convolutions[-1] == ("FLOAT",)
    assert len(convolutions) > 5
    assert set(convolutions[:-1]) == {("HALF",)}
    sums = [layer.gives for layer in layers if layer.kind in {"NORMALIZATION", "REDUCE", "POOLING", "UNARY"}]
    assert sums
    assert set(sums) == {("FLOAT",)}
    ends = (network.definition.get_input(0), network.definition.get_output(0))
    assert [tensor.dtype.name for tensor in ends] == ["FLOAT", "FLOAT"]


@pytest.mark.parametrize("name", FP32 + FP16)
def test_every_graph_builds(tensorrt, graphs, tmp_path, name):
    path = tmp_path / "model.onnx"
    path.write_bytes(graphs[name])
    plan = build(path)
    here = TensorRtIdentity("tensorrt", tensorrt.__version__)
    stored = find_plan(path.name, sha256_of(path), here, GPU)
    assert stored.path == plan
    assert stored.precision == ("f16" if name in FP16 else "f32")
    assert stored.key.tile_shape == ((96, 96, 96) if name == "unet" else TILE)
    assert len(read_plan(stored)) > len(graphs[name]) / 3


def test_layers_are_typed_as_the_graph_says(tensorrt, model):
    layers = layers_of(parse_network(tensorrt, model.read_bytes(), model.name))
    assert [layer.gives for layer in layers if layer.kind == "CONVOLUTION"] == [("HALF",), ("HALF",)]
    assert [layer.gives for layer in layers if layer.kind == "NORMALIZATION"] == [("FLOAT",)]
    assert layers[-1].gives == ("FLOAT",)


def test_a_quantised_graph_is_read_as_int8_and_builds(tensorrt, tmp_path):
    path = tmp_path / "model.int8.onnx"
    path.write_bytes(quantised_graph().SerializeToString())
    layers = layers_of(parse_network(tensorrt, path.read_bytes(), path.name))
    assert [layer.gives for layer in layers if layer.kind == "QUANTIZE"] == [("INT8",)]
    build(path)
    here = TensorRtIdentity("tensorrt", tensorrt.__version__)
    assert find_plan(path.name, sha256_of(path), here, GPU).precision == "int8"


def test_the_profile_frees_the_batch_and_nothing_else(tensorrt, model):
    network = parse_network(tensorrt, model.read_bytes(), model.name)
    profile = batch_profile(network, BuilderOptions(opt_batch=2, max_batch=6))
    assert [tuple(shape) for shape in profile.get_shape("tiles")] == [(1, 1, *TILE), (2, 1, *TILE), (6, 1, *TILE)]


def test_options_reach_the_builder(tensorrt, model):
    network = parse_network(tensorrt, model.read_bytes(), model.name)
    plain = configure(tensorrt, network, BuilderOptions())
    assert plain.builder_optimization_level == 3
    assert plain.num_optimization_profiles == 1
    assert not plain.get_flag(tensorrt.BuilderFlag.TF32)
    assert not plain.get_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)
    options = BuilderOptions(workspace_mib=64, tf32=True, version_compatible=True, optimization_level=5)
    config = configure(tensorrt, network, options)
    assert config.builder_optimization_level == 5
    assert config.get_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE) == 64 * 2**20
    assert config.get_flag(tensorrt.BuilderFlag.TF32)
    assert config.get_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)


@pytest.mark.parametrize(
    "wrong",
    [{"opt_batch": 0}, {"opt_batch": 5}, {"max_batch": 0}, {"optimization_level": 6}, {"workspace_mib": 0}],
)
def test_options_without_meaning_are_refused(wrong):
    with pytest.raises(SettingsError, match="expected"):
        BuilderOptions(**wrong)


@pytest.mark.parametrize("wrong", [{"version_compatible": True}, {"hardware_compatibility": "ampere_plus"}])
def test_what_tensorrt_for_rtx_would_pass_over_is_refused(model, monkeypatch, wrong):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with importable_tensorrt("tensorrt_rtx"), pytest.raises(SettingsError, match="tensorrt_rtx has neither"):
        build(model, BuilderOptions(**wrong))


def test_tensorrt_for_rtx_builds_where_it_is_what_is_installed(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with importable_tensorrt("tensorrt_rtx") as package:
        build(model)
        assert find_plan(model.name, sha256_of(model), TensorRtIdentity("tensorrt_rtx", package.__version__), GPU)


def test_everything_in_the_cache_is_the_user_s_alone(tensorrt, model, folder):
    plan = build(model)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert {path.suffix for path in folder.iterdir()} == {".plan", ".json", ".lock", ".timing"}
    assert [path.stem for path in folder.glob("*.json")] == [plan.stem]


def test_a_plan_is_built_once(tensorrt, model):
    plan = build(model)
    built = plan.stat().st_mtime_ns
    assert build(model, on_progress=lambda *step: pytest.fail(f"built again: {step}")) == plan
    assert plan.stat().st_mtime_ns == built
    assert build(model, BuilderOptions(opt_batch=2)) != plan


def test_a_damaged_plan_is_built_again(tensorrt, model):
    plan = build(model)
    plan.write_bytes(plan.read_bytes()[:-1])
    assert build(model) == plan
    assert read_plan(find_plan(model.name, sha256_of(model), TensorRtIdentity("tensorrt", tensorrt.__version__), GPU))


def test_measured_times_are_kept_and_damaged_ones_forgotten(tensorrt, model, folder):
    plan = build(model)
    (timings,) = folder.glob("*.timing")
    stored = find_plan(model.name, sha256_of(model), TensorRtIdentity("tensorrt", tensorrt.__version__), GPU)
    assert timings == timing_path(stored.key)
    timings.write_bytes(b"no times at all")
    plan.unlink()
    assert build(model) == plan
    assert timings.read_bytes() != b"no times at all"
    timings.unlink()
    build(model, BuilderOptions(timing_cache=False))
    assert not timings.exists()


def test_progress_is_told_phase_by_phase(tensorrt, model):
    steps = []
    build(model, on_progress=lambda *step: steps.append(step))
    assert {phase for phase, _, _ in steps} >= {"Building engine"}
    assert all(1 <= done <= total for _, done, total in steps)


@pytest.mark.parametrize("reason", [KeyboardInterrupt, RuntimeError])
def test_what_progress_raises_cancels_the_build(tensorrt, model, folder, reason):
    steps = []

    def stop_at_the_third(*step):
        steps.append(step)
        if len(steps) == 3:
            raise reason("enough")

    with pytest.raises(reason, match="enough"):
        build(model, on_progress=stop_at_the_third)
    assert len(steps) == 3
    assert {path.suffix for path in folder.iterdir()} == {".lock"}
    assert build(model).is_file()


def test_of_two_processes_the_second_waits_and_takes_the_first_s_plan(model, folder, tmp_path):
    go = tmp_path / "go"
    with start_build("first", model, go) as first:
        assert first.stdout.readline() == "building\n"
        with start_build("second", model, go) as second:
            assert second.stdout.readline() == "waiting\n"
            go.touch()
            assert first.communicate()[0] == second.communicate()[0]
    (plan,) = folder.glob("*.plan")
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".lock", ".plan", ".timing"]
    with importable_tensorrt():  # the plan that both got is a good one
        assert build(model, on_progress=lambda *step: pytest.fail(f"built again: {step}")) == plan


def test_a_file_that_is_no_onnx_model_is_refused(tensorrt, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(BundleError, match=r"broken\.onnx: is not an ONNX model"):
        build(path)
    with pytest.raises(EngineError, match=r"TensorRT refuses broken\.onnx: .*Failed to parse the ONNX model"):
        parse_network(tensorrt, path.read_bytes(), path.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv": np.float32}, "`input` and `kernel` must be of same type.*at Conv"),
        ({"norm_input": TensorProto.FLOAT16}, "either all FLOAT or all FLOAT16.*at InstanceNormalization"),
        ({"batch": 2}, r"\(2, 1, 16, 16, 8\).*with a free N alone"),
        ({"result": TensorProto.FLOAT16}, "both float32"),
    ],
)
def test_a_network_that_cannot_be_built_is_one_sentence(tensorrt, tmp_path, folder, change, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(mixed_graph(**change).SerializeToString())
    with pytest.raises(EngineError, match=message) as refusal:
        build(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
    assert not folder.exists()


def test_an_operator_unknown_to_covidseg_never_reaches_tensorrt(tensorrt, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(mixed_graph(norm="Frobnicate").SerializeToString())
    with pytest.raises(BundleError, match="has the operator 'Frobnicate', which no network of covidseg has"):
        build(path)
    with pytest.raises(EngineError, match="Plugin not found.*at Frobnicate"):
        parse_network(tensorrt, path.read_bytes(), path.name)


def test_a_build_that_fails_gives_tensorrt_s_reason_and_leaves_no_plan(tensorrt, model, folder):
    """TensorRT for RTX brings no lean runtime, which a version-compatible plan would take along."""
    with pytest.raises(EngineError, match=r"cannot build a plan of model\.onnx: .*libnvinfer_lean"):
        build(model, BuilderOptions(version_compatible=True))
    assert {path.suffix for path in folder.iterdir()} == {".lock"}


def test_without_tensorrt_nothing_is_built(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match=r"TensorRT cannot be loaded.*pip install"):
        build(model)


def test_plans_are_built_without_torch_and_onnx(model, folder):
    block = "import sys\nfor name in ('torch', 'monai', 'onnx', 'covidseg_train'): sys.modules[name] = None\n"
    with start_build("first", model, model, before=block) as process:
        assert process.communicate()[0].split() == ["building", str(next(folder.glob("*.plan")))]


BUILD = f"""
import sys, time
from pathlib import Path
from tensorrt_harness import GPU, importable_tensorrt
from covidseg_export.to_tensorrt import BuilderOptions, build_plan

name, model, go = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
told = []

def on_progress(phase, done, total):
    if not told:
        told.append(phase)
        print("waiting" if phase == {WAITING!r} else "building", flush=True)
        until = time.monotonic() + 20
        while name == "first" and not go.exists() and time.monotonic() < until:
            time.sleep(0.01)
    elif told == [{WAITING!r}]:
        raise RuntimeError("built what another process had built")

with importable_tensorrt():
    print(build_plan(model, BuilderOptions(), gpu=GPU, on_progress=on_progress))
"""


def start_build(name, model, go, before=""):
    """Build in a process of its own; the first one stops in its first phase until the file `go` is there."""
    return subprocess.Popen(
        [sys.executable, "-c", before + BUILD, name, str(model), str(go)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
