"""Passes that are broken on purpose are caught by the gate: the trained network, a real scan, the real engine."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from covidseg_export.export_run import describe, write_draft
from covidseg_export.graph_rules import require_float_sums
from covidseg_export.parity import Candidate, ParityCheck, ParityLimits, ParityScan, require_parity
from covidseg_export.precision import to_fp16
from covidseg_export.source import read_bundle
from covidseg_export.to_onnx import export_onnx
from covidseg_runtime.bundle import default_bundle_path, load_bundle
from covidseg_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from covidseg_runtime.errors import BundleError
from covidseg_runtime.tiling import TilePlan
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import read_label_map, read_volume
from covidseg_train.torch_engine import TorchEngine
from covidseg_train.unet import UNet3d, UNetSpec

DEMO = Path(__file__).parents[1] / "data" / "demo"
TILE = (48, 48, 48)
LIMITS = ParityLimits()


@pytest.fixture(scope="module")
def source():
    """The shipped network on small tiles."""
    shipped = read_bundle(load_bundle(default_bundle_path()), version="1")
    return replace(shipped, tile_plan=TilePlan(TILE, 1.0))


@pytest.fixture(scope="module")
def scan():
    """A piece of the demo scan around infected lung, 96×96×60 voxels."""
    ct, truth = (
        reader(DEMO / f"coronacases_002_{what}.nii.gz")
        for reader, what in ((read_volume, "ct"), (read_label_map, "infection"))
    )
    x, y, z = (int(np.median(axis)) for axis in np.nonzero(truth.voxels))
    part = tuple(slice(max(0, at - half), at + half) for at, half in ((x, 48), (y, 48), (z, 30)))
    return ParityScan("demo", Volume(ct.voxels[part], ct.affine), truth.voxels[part] > 0)


@pytest.fixture(scope="module")
def native(source):
    return export_onnx(source.network, TILE, normalisation="native")


@pytest.fixture(scope="module")
def judge(source, scan, native, tmp_path_factory) -> Callable[[bytes, str], None]:
    """Runs a graph against torch and requires parity."""
    folder = tmp_path_factory.mktemp("gate")
    bundle = write_draft(folder, describe(source, {"fp32": native}), {"fp32": native})
    check = ParityCheck(bundle, TorchEngine(source.network, device=torch.device("cpu")), scan)

    def run(model: bytes, precision: str) -> None:
        path = folder / "candidate.onnx"
        path.write_bytes(model)
        engine = OnnxRuntimeEngine(path, precision=precision)
        require_parity((check.compare(Candidate("candidate.onnx", engine)),), LIMITS)

    return run


def altered(model: bytes, change: Callable[[onnx.GraphProto], None]) -> bytes:
    proto = onnx.load_from_string(model)
    change(proto.graph)
    return proto.SerializeToString()


def replace_weight(graph: onnx.GraphProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    (tensor,) = (one for one in graph.initializer if one.name in (name, f"network.{name}", f"network.{name}.fp16"))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), tensor.name))


def test_the_unbroken_pass_is_let_through(judge, native):
    judge(to_fp16(native), "f16")


def test_a_bias_that_is_dropped_is_caught(judge, native):
    broken = altered(to_fp16(native), lambda graph: replace_weight(graph, "heads.0.bias", np.zeros_like))
    with pytest.raises(BundleError, match="candidate.onnx on onnxruntime .* differs from torch on demo"):
        judge(broken, "f16")


def test_a_bias_that_normalisation_almost_hides_is_caught_in_float32(judge, native):
    """It only shows at the border of a tile."""
    broken = altered(native, lambda graph: replace_weight(graph, "decoder.ups.3.bias", np.zeros_like))
    with pytest.raises(BundleError, match="a logit differs by"):
        judge(broken, "f32")


@pytest.mark.parametrize("axes", [(0, 1, 4, 3, 2), (0, 1, 2, 4, 3)], ids=["z and x", "y and x"])
def test_a_wrong_permutation_is_caught(judge, native, axes):
    broken = altered(
        to_fp16(native),
        lambda graph: replace_weight(graph, "encoder.stages.1.0.0.weight", lambda weight: weight.transpose(axes)),
    )
    with pytest.raises(BundleError, match="differs from torch on demo"):
        judge(broken, "f16")


def test_a_normalisation_in_half_is_caught_by_its_type():
    spec = UNetSpec(widths=(4, 8), strides=((2, 2, 2),), supervised_levels=1)
    native = export_onnx(UNet3d(spec).eval(), (16, 16, 16), normalisation="native")

    def halve_one_norm(graph: onnx.GraphProto) -> None:
        norm = next(node for node in graph.node if node.op_type == "InstanceNormalization")
        index = list(graph.node).index(norm)
        casts = [
            helper.make_node("Cast", [name], [f"{name}.half{k}"], to=TensorProto.FLOAT16)
            for k, name in enumerate(norm.input)
        ]
        back = helper.make_node("Cast", [f"{norm.output[0]}.half"], [norm.output[0]], to=TensorProto.FLOAT)
        broken = helper.make_node(
            "InstanceNormalization", [cast.output[0] for cast in casts], [f"{norm.output[0]}.half"], epsilon=1e-5
        )
        nodes = [*graph.node[:index], *casts, broken, back, *graph.node[index + 1 :]]
        del graph.node[:]
        graph.node.extend(nodes)

    fp16 = to_fp16(native)
    require_float_sums(fp16, "model.fp16.onnx")
    with pytest.raises(BundleError, match=r"model\.fp16\.onnx computes InstanceNormalization .* in half precision"):
        require_float_sums(altered(fp16, halve_one_norm), "model.fp16.onnx")


def test_a_last_layer_in_half_is_caught_by_its_type(native):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    whole = convert_float_to_float16(onnx.load_from_string(native), keep_io_types=True).SerializeToString()
    with pytest.raises(BundleError, match="in half precision"):
        require_float_sums(whole, "model.fp16.onnx")
