"""The int8 graph rounds the layers meant to be rounded, in a form that engines run as int8 and agree on."""

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from phantom import phantom_hu
from run_graph import predict

from covidseg_export.quantisation import draw_calibration_tiles, to_int8
from covidseg_export.to_onnx import export_onnx
from covidseg_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from covidseg_runtime.engines.openvino_engine import OpenVinoEngine
from covidseg_runtime.errors import SettingsError
from covidseg_runtime.intensity import HounsfieldScaling, clip_and_scale_hounsfield
from covidseg_train.hybrid import HybridEncoderUNet
from covidseg_train.unet import UNet3d, UNetSpec

TILE = (16, 16, 8)
SPEC = UNetSpec(widths=(8, 16, 16), strides=((2, 2, 2), (2, 2, 1)), supervised_levels=1)
SHORT = replace(SPEC, widths=(8, 16), strides=((2, 2, 2),))
BATCH = replace(SHORT, normalisation="batch")
NETWORKS = {
    "plain": lambda: UNet3d(SPEC),
    "selective": lambda: HybridEncoderUNet(SHORT),
    "concatenation": lambda: HybridEncoderUNet(SHORT, "concatenation"),
    "batch norm": lambda: UNet3d(BATCH),
}
SCALING = HounsfieldScaling(lower_hu=-1000, upper_hu=200, mean_hu=0, sd_hu=100)


def calibration_tiles():
    random = np.random.default_rng(0)
    return [random.normal(size=(1, 1, *TILE)).astype(np.float32) for _ in range(4)]


@cache
def build(name):
    torch.manual_seed(0)
    return export_onnx(NETWORKS[name]().eval(), TILE, normalisation="native")


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request):
    model = build(request.param)
    return model, to_int8(model, iter(calibration_tiles()))


@pytest.fixture(scope="module")
def plain():
    model = build("plain")
    return onnx.load_from_string(to_int8(model, calibration_tiles())).graph


def makers(graph):
    return {name: node for node in graph.node for name in node.output}


def rounded_layers(graph):
    made = makers(graph)
    return [
        node
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose") and node.input[0] in made
        if made[node.input[0]].op_type == "DequantizeLinear"
    ]


def test_all_convolutions_but_the_ends_and_the_fine_skips_are_rounded(plain):
    convolutions = [node for node in plain.node if node.op_type in ("Conv", "ConvTranspose")]
    assert rounded_layers(plain) == [convolutions[2], *convolutions[4:-2]]
    assert convolutions[0].input[0] == "tiles"
    assert convolutions[-1].output[0] == "logits"


def test_with_folded_normalisation_only_the_ends_stay_float():
    graph = onnx.load_from_string(to_int8(build("batch norm"), calibration_tiles())).graph
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert rounded_layers(graph) == convolutions[1:-1]


def test_both_finest_stages_of_a_hybrid_stay_float():
    graph = onnx.load_from_string(to_int8(build("selective"), calibration_tiles())).graph
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert len(convolutions) - len(rounded_layers(graph)) == 6  # two in either encoder, and the last two


def test_input_and_weights_of_a_layer_are_dequantised_and_its_output_is_not_quantised(pair):
    graph = onnx.load_from_string(pair[1]).graph
    made = makers(graph)
    outputs = {node.output[0] for node in rounded_layers(graph)}
    for node in rounded_layers(graph):
        assert [made[name].op_type for name in node.input[:2]] == ["DequantizeLinear", "DequantizeLinear"]
    assert not outputs & {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}


def test_zero_points_are_zero_and_weights_have_a_scale_for_every_output_channel(pair):
    graph = onnx.load_from_string(pair[1]).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = makers(graph)
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert values[node.input[2]].dtype == np.int8
            assert not values[node.input[2]].any()
    for layer in rounded_layers(graph):
        weights = made[layer.input[1]]
        (axis,) = (attribute.i for attribute in weights.attribute)
        assert axis == (0 if layer.op_type == "Conv" else 1)
        assert values[weights.input[1]].shape == (values[weights.input[0]].shape[axis],)
        assert np.abs(values[weights.input[0]].astype(int)).max() == 127


def test_skips_are_joined_as_int8_and_quantised_once(plain):
    model = helper.make_model(plain, opset_imports=[helper.make_opsetid("", 20)])
    infos = onnx.shape_inference.infer_shapes(model).graph.value_info
    elements = {value.name: value.type.tensor_type.elem_type for value in infos}
    joined = [node for node in plain.node if node.op_type == "Concat"]
    assert [elements[node.output[0]] for node in joined] == [TensorProto.INT8] * 2
    quantised = [node.input[0] for node in plain.node if node.op_type == "QuantizeLinear"]
    # One tensor a layer: of the two that are joined for a layer, the encoder's next layer has read the skip already.
    assert len(set(quantised)) == len(quantised) == len(rounded_layers(plain)) == 8


@pytest.mark.parametrize("kind", [OnnxRuntimeEngine, OpenVinoEngine])
def test_logits_are_near_those_of_float(pair, kind, tmp_path):
    """A step is 1/127 of a channel's largest value: 3 % of the spread of the logits is the most seen."""
    tiles = calibration_tiles()[0]
    expected, found = (predict(model, tiles, tmp_path, kind) for model in pair)
    assert 0 < np.abs(found - expected).mean() < 0.06 * expected.std()


def test_both_engines_agree(pair, tmp_path):
    """A value at half a step is rounded up by one engine and down by the other; nothing else may differ."""
    tiles = calibration_tiles()[1]
    ours, theirs = (predict(pair[1], tiles, tmp_path, kind) for kind in (OnnxRuntimeEngine, OpenVinoEngine))
    assert np.abs(ours - theirs).mean() < 0.04 * ours.std()


def test_openvino_runs_the_layers_in_eight_bits(pair):
    import openvino

    core = openvino.Core()
    model = core.read_model(pair[1])
    model.reshape([1, 1, *TILE])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    precisions = [
        fact["runtimePrecision"].astype(str)
        for fact in facts
        if fact["layerType"].astype(str) in ("Convolution", "Deconvolution")
    ]
    rounded = len(rounded_layers(onnx.load_from_string(pair[1]).graph))
    assert sum(precision in ("i8", "u8") for precision in precisions) == rounded


def test_a_faint_channel_beside_a_strong_one_keeps_its_steps(tmp_path):
    """Channels v and 100·v, v in 0…127, weighed 1 and 1/100: each is exact on a scale of its own, so 2·v comes out.

    On one scale for both a step would be 100, and v nothing.
    """
    values = np.arange(128, dtype=np.float32).reshape(1, 1, 4, 4, 8)
    model = pointwise_layers([[1], [100]], [[1, 0.01]], [[1]], [[1]], shape=values.shape[2:])
    logits = predict(to_int8(model, [values]), values, tmp_path, OnnxRuntimeEngine)
    np.testing.assert_allclose(logits, 2 * values, rtol=1e-5)


def pointwise_layers(*weights, shape):
    """An ONNX network of 1×1×1 convolutions without bias; weights (C_out, C_in) of each."""
    tensors = [
        numpy_helper.from_array(np.array(weight, np.float32)[..., None, None, None], f"weight{index}")
        for index, weight in enumerate(weights)
    ]
    names = ["tiles", *(f"features{index}" for index in range(1, len(weights))), "logits"]
    nodes = [
        helper.make_node("Conv", [before, tensor.name], [after], after)
        for before, tensor, after in zip(names, tensors, names[1:], strict=False)
    ]
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, *shape]) for name in ("tiles", "logits")
    )
    graph = helper.make_graph(nodes, "pointwise", [image], [logits], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_quantising_twice_gives_the_same_bytes_without_traces(pair):
    again = to_int8(pair[0], calibration_tiles())
    assert again == pair[1]
    assert not any(trace in again for trace in (b".py", b"/tmp", b"/home"))


def test_a_network_of_two_convolutions_is_refused():
    model = pointwise_layers([[1]], [[1]], shape=(4, 4, 4))
    with pytest.raises(SettingsError, match="no convolution between its first and its last"):
        to_int8(model, [np.zeros((1, 1, 4, 4, 4), np.float32)])


def test_means_written_out_are_refused():
    with pytest.raises(SettingsError, match='normalisation="native"'):
        to_int8(export_onnx(UNet3d(SHORT).eval(), TILE), calibration_tiles())


def test_no_tile_and_a_tile_of_another_shape_are_refused(pair):
    with pytest.raises(SettingsError, match="at least one calibration tile"):
        to_int8(pair[0], [])
    with pytest.raises(SettingsError, match=r"shape \(1, 1, 8, 8, 8\); \(N, 1, 16, 16, 8\) fits"):
        to_int8(pair[0], [np.zeros((1, 1, 8, 8, 8), np.float32)])


def draw(hu, *, count=8, seed=3, shape=(8, 8, 8)):
    return draw_calibration_tiles(hu, SCALING, shape, count=count, seed=seed)


def test_tiles_are_cuts_of_the_scaled_scan():
    hu = (np.arange(16**3).reshape(16, 16, 16) % 1200 - 1000).astype(np.int16)
    scaled = clip_and_scale_hounsfield(hu, SCALING)
    windows = np.lib.stride_tricks.sliding_window_view(scaled, (8, 8, 8)).reshape(-1, 8, 8, 8)
    for tile in draw(hu):
        assert tile.shape == (1, 1, 8, 8, 8)
        assert tile.dtype == np.float32
        assert (windows == tile[0, 0]).all(axis=(1, 2, 3)).any()


def test_every_other_tile_has_lung_at_its_centre():
    centres = [tile[0, 0, 4, 4, 4] * 100 for tile in draw(phantom_hu(), count=40)]
    assert all(hu < -500 for hu in centres[::2])
    assert not all(hu < -500 for hu in centres[1::2])


def test_a_scan_without_lung_still_gives_tiles():
    assert len(draw(np.full((16, 16, 16), 40, np.int16))) == 8


def test_a_scan_smaller_than_a_tile_repeats_its_border_voxel():
    hu = np.full((4, 8, 8), 40, np.int16)
    hu[3] = 90
    (tile,) = draw(hu, count=1)
    np.testing.assert_allclose(tile[0, 0, :3], 0.4, rtol=1e-6)
    np.testing.assert_allclose(tile[0, 0, 3:], 0.9, rtol=1e-6)


def test_the_same_seed_gives_the_same_tiles_and_another_others():
    first, again, other = draw(phantom_hu()), draw(phantom_hu()), draw(phantom_hu(), seed=4)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
