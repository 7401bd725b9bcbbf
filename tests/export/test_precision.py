"""The fp16 graph computes in half what may be, in float what must be, and says nearly the same."""

from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from run_graph import predict
from torch import nn

from covidseg_export.ensemble import FoldEnsemble
from covidseg_export.precision import FLUSHED_WEIGHTS, to_fp16
from covidseg_export.to_onnx import export_onnx
from covidseg_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from covidseg_runtime.engines.openvino_engine import OpenVinoEngine
from covidseg_runtime.errors import BundleError
from covidseg_train.hybrid import HybridEncoderUNet
from covidseg_train.unet import UNet3d, UNetSpec

TILE = (16, 16, 8)
SPEC = UNetSpec(widths=(4, 8), strides=((2, 2, 2),), supervised_levels=1)
BATCH = replace(SPEC, normalisation="batch")
NETWORKS = {
    "plain": lambda: UNet3d(SPEC),
    "selective": lambda: HybridEncoderUNet(SPEC),
    "concatenation": lambda: HybridEncoderUNet(SPEC, "concatenation"),
    "ensemble": lambda: FoldEnsemble([UNet3d(SPEC), UNet3d(SPEC)]),
    "batch norm": lambda: UNet3d(BATCH),
}
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@cache
def build(name, normalisation="native"):
    torch.manual_seed(0)
    return export_onnx(NETWORKS[name]().eval(), TILE, normalisation=normalisation)


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request):
    model = build(request.param)
    return model, to_fp16(model)


def types_of(model):
    """What each operator computes in, read back from the graph: {operator: {type: how often}}."""
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
    typed = [*proto.graph.value_info, *proto.graph.output]
    elements = {value.name: value.type.tensor_type.elem_type for value in typed}
    types = defaultdict(Counter)
    for node in proto.graph.node:
        types[node.op_type][elements[node.output[0]]] += 1
    return types


def noise(seed=0):
    return np.random.default_rng(seed).normal(size=(1, 1, *TILE)).astype(np.float32)


def test_a_plain_network_is_half_but_for_its_norms_and_its_last_layer():
    types = types_of(to_fp16(build("plain")))
    assert types["Conv"] == {HALF: 6, FLOAT: 1}
    assert types["ConvTranspose"] == {HALF: 1}
    assert types["Concat"] == {HALF: 1}
    assert types["LeakyRelu"] == {HALF: 5, FLOAT: 1}
    assert types["InstanceNormalization"] == {FLOAT: 6}
    # The image and five activations to half, six convolutions back to float.
    assert types["Cast"] == {HALF: 6, FLOAT: 6}


def test_means_written_out_stay_float_with_what_is_squared_for_them():
    types = types_of(to_fp16(build("plain", "axis-wise")))
    for operator in ("AveragePool", "Sub", "Mul", "Add", "Sqrt", "Reciprocal"):
        assert set(types[operator]) == {FLOAT}
    assert types["Conv"] == {HALF: 6, FLOAT: 1}
    assert types["Cast"] == {HALF: 6, FLOAT: 6}


def test_selective_fusion_chooses_in_float_and_mixes_in_half():
    types = types_of(to_fp16(build("selective")))
    for operator in ("ReduceMean", "Gemm", "LayerNormalization", "Relu", "Softmax"):
        assert set(types[operator]) == {FLOAT}
    assert types["Mul"] == {HALF: 4}  # two shares at each of two stages
    assert types["Add"] == {FLOAT: 2, HALF: 2}  # the sum to be averaged; the mixture
    assert types["Conv"] == {HALF: 10, FLOAT: 1}


def test_the_last_layer_of_every_fold_is_float_and_the_mean_of_their_probabilities_too():
    types = types_of(to_fp16(build("ensemble")))
    assert types["Conv"] == {HALF: 12, FLOAT: 2}
    for operator in ("Softmax", "Add", "Mul", "Log"):
        assert set(types[operator]) == {FLOAT}


def test_image_and_logits_are_float(pair):
    graph = onnx.load_from_string(pair[1]).graph
    (image,), (logits,) = graph.input, graph.output
    assert image.type.tensor_type.elem_type == logits.type.tensor_type.elem_type == FLOAT


def test_no_tensor_is_cast_twice_nor_a_cast_undone(pair):
    casts = [node for node in onnx.load_from_string(pair[1]).graph.node if node.op_type == "Cast"]
    made = {node.output[0] for node in casts}
    assert casts
    assert not made & {node.input[0] for node in casts}
    assert max(Counter((node.input[0], node.attribute[0].i) for node in casts).values()) == 1


def test_every_weight_is_kept_once_in_the_type_it_is_used_in(pair):
    initialisers = onnx.load_from_string(pair[1]).graph.initializer
    originals = Counter(tensor.name.removesuffix(".fp16") for tensor in initialisers)
    assert max(originals.values()) == 1
    assert len(pair[1]) < 0.8 * len(pair[0])


@pytest.mark.parametrize("kind", [OnnxRuntimeEngine, OpenVinoEngine])
def test_logits_are_those_of_float_to_half_s_precision(pair, kind, tmp_path):
    """Half keeps 11 bits: 5e-4 of logits of size 3, grown by seven layers; 7e-3 is the largest seen."""
    expected, found = (predict(model, noise(), tmp_path, kind) for model in pair)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.03


@pytest.mark.parametrize("normalisation", ["native", "axis-wise"])
def test_features_whose_sum_overflows_half_come_out_finite_and_right(normalisation, tmp_path):
    """Every feature is about 60: 2,048 voxels sum to 122,880, beyond half's 65,504."""
    torch.manual_seed(0)
    network = HybridEncoderUNet(SPEC).eval()
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm3d):
            nn.init.constant_(module.bias, 60.0)
    model = export_onnx(network, TILE, normalisation=normalisation)
    tiles = 1000 + noise()
    expected = predict(model, tiles, tmp_path, OnnxRuntimeEngine)
    for kind in (OnnxRuntimeEngine, OpenVinoEngine):
        found = predict(to_fp16(model), tiles, tmp_path, kind)
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def with_first_weight(model, value):
    proto = onnx.load_from_string(model)
    tensor = next(one for one in proto.graph.initializer if one.name == "network.encoder.stages.0.0.0.weight")
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    return proto.SerializeToString()


def test_a_weight_too_large_for_half_is_refused_by_name():
    model = with_first_weight(build("plain"), 7e4)
    with pytest.raises(BundleError, match=r"encoder\.stages\.0\.0\.0\.weight holds the weight 7e\+04"):
        to_fp16(model)


@pytest.mark.parametrize(("weight", "flushed"), [(1e-8, "1"), (1e-7, "0"), (0.0, "0")])
def test_weights_too_small_for_half_are_counted(weight, flushed):
    """The smallest step of half is 6e-8."""
    proto = onnx.load_from_string(to_fp16(with_first_weight(build("plain"), weight)))
    assert [(prop.key, prop.value) for prop in proto.metadata_props] == [(FLUSHED_WEIGHTS, flushed)]


def test_converting_twice_gives_the_same_bytes(pair):
    assert to_fp16(pair[0]) == pair[1]
