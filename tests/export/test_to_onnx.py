"""The exported graph says what the network says, with a free batch, in one file."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from covidseg_export.exportable import AxisWiseInstanceNorm, ExportableUNet, tile_fit
from covidseg_export.to_onnx import OPSET, export_onnx
from covidseg_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from covidseg_runtime.engines.openvino_engine import OpenVinoEngine
from covidseg_train.hybrid import HybridEncoderUNet
from covidseg_train.unet import UNet3d, UNetSpec

SMALL = UNetSpec(widths=(4, 8, 12), strides=((2, 2, 2), (2, 2, 1)), supervised_levels=2)
SHORT = replace(SMALL, widths=(4, 8), strides=((2, 2, 2),), supervised_levels=1)
TILE = (16, 16, 8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = UNet3d(SMALL)
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm3d):  # fresh ones scale by 1 and shift by 0: nothing could get lost
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias, -1.0, 1.0)
    return network.eval()


@pytest.fixture(scope="module")
def model(network):
    return export_onnx(network, TILE)


def test_instance_normalisation_axis_by_axis_is_instance_normalisation():
    norm = nn.InstanceNorm3d(3, affine=True).double()
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.bias, -1.0, 1.0)
    features = torch.randn(2, 3, 5, 6, 7, dtype=torch.float64) * 40 - 300
    torch.testing.assert_close(AxisWiseInstanceNorm(norm)(features), norm(features), rtol=1e-10, atol=1e-10)


def test_wrapping_leaves_the_network_as_it_was(network):
    tiles = torch.randn(1, 1, *TILE)
    with torch.no_grad():
        finest, _ = network(tiles)
        wrapped = ExportableUNet(network)(tiles)
        again, _ = network(tiles)
    torch.testing.assert_close(wrapped, finest, rtol=1e-5, atol=1e-5)
    assert torch.equal(finest, again)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("engine", [OnnxRuntimeEngine, OpenVinoEngine])
def test_both_engines_agree_with_torch_for_any_batch(network, model, tmp_path, engine, batch):
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    tiles = np.random.default_rng(batch).normal(size=(batch, 1, *TILE)).astype(np.float32)
    with torch.no_grad():
        expected = ExportableUNet(network)(torch.from_numpy(tiles)).numpy()
    opened = engine(path)
    try:
        logits = opened.predict(tiles)
    finally:
        opened.close()
    assert logits.shape == (batch, 3, *TILE)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_the_file_is_self_contained_and_tells_nothing_of_its_machine(model):
    graph = onnx.load_from_string(model)
    assert [opset.version for opset in graph.opset_import if opset.domain == ""] == [OPSET]
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.graph.initializer)
    assert b".py" not in model
    batch, *fixed = graph.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param
    assert [dimension.dim_value for dimension in fixed] == [1, *TILE]


def test_the_graph_holds_nothing_that_engines_resize_or_that_only_training_needs(model):
    nodes = {node.op_type for node in onnx.load_from_string(model).graph.node}
    assert "ConvTranspose" in nodes
    assert not nodes & {"Resize", "Loop", "If", "Dropout", "BatchNormalization"}


def operators(model):
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


def test_native_normalisation_is_one_operator_a_norm_and_says_what_the_network_says(network, tmp_path):
    model = export_onnx(network, TILE, normalisation="native")
    assert operators(model) == {
        "Conv": 11,
        "InstanceNormalization": 10,
        "LeakyRelu": 10,
        "ConvTranspose": 2,
        "Concat": 2,
    }
    assert_engines_say(network, model, tmp_path)


def test_the_global_mean_of_fusion_is_plain_where_normalisation_is_native(tmp_path):
    network = HybridEncoderUNet(SHORT).eval()
    assert "ReduceMean" not in operators(export_onnx(network, TILE))
    model = export_onnx(network, TILE, normalisation="native")
    assert operators(model)["ReduceMean"] == len(SHORT.widths)
    assert "AveragePool" not in operators(model)
    assert_engines_say(network, model, tmp_path)


@pytest.mark.parametrize("kind", [UNet3d, HybridEncoderUNet])
def test_batch_normalisation_folds_into_the_convolution(kind, tmp_path):
    network = kind(replace(SHORT, normalisation="batch"))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.running_mean, -1.0, 1.0)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    model = export_onnx(network.eval(), TILE)
    assert "BatchNormalization" not in operators(model)
    assert_engines_say(network, model, tmp_path)


@pytest.mark.parametrize("shape", [TILE, (24, 16, 40), (8, 48, 8)])
def test_without_sums_over_the_tile_openvino_takes_tiles_of_any_shape(tmp_path, shape):
    torch.manual_seed(0)
    network = UNet3d(replace(SMALL, normalisation="batch")).eval()
    assert tile_fit(network).multiple_of == (4, 4, 2)
    (tmp_path / "model.onnx").write_bytes(export_onnx(network, TILE))
    engine = OpenVinoEngine(tmp_path / "model.onnx", any_tile=True)
    tiles = np.random.default_rng(0).normal(size=(2, 1, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = network.finest_logits(torch.from_numpy(tiles)).numpy()
    np.testing.assert_allclose(engine.predict(tiles), expected, atol=1e-4)
    engine.close()


@pytest.mark.parametrize(
    "network",
    [UNet3d(SHORT), HybridEncoderUNet(SHORT), HybridEncoderUNet(replace(SHORT, normalisation="batch"))],
    ids=["instance", "hybrid", "hybrid-batch"],
)
def test_a_network_that_sums_over_the_tile_has_tiles_of_one_shape(network):
    assert tile_fit(network) is None


def assert_engines_say(network, model, folder):
    (folder / "model.onnx").write_bytes(model)
    tiles = np.random.default_rng(0).normal(size=(1, 1, *TILE)).astype(np.float32)
    with torch.no_grad():
        expected = network.finest_logits(torch.from_numpy(tiles)).numpy()
    for engine in (OnnxRuntimeEngine(folder / "model.onnx"), OpenVinoEngine(folder / "model.onnx")):
        np.testing.assert_allclose(engine.predict(tiles), expected, atol=1e-4)
        engine.close()


def test_transposed_convolutions_neither_overlap_nor_pad(model):
    graph = onnx.load_from_string(model).graph
    ups = [node for node in graph.node if node.op_type == "ConvTranspose"]
    assert len(ups) == 2
    for node in ups:
        attributes = {attribute.name: list(attribute.ints) for attribute in node.attribute if attribute.ints}
        weights = next(tensor for tensor in graph.initializer if tensor.name == node.input[1])
        assert attributes["strides"] == list(weights.dims)[2:]
        assert not any(attributes.get("output_padding", []) + attributes.get("pads", []))


def test_exporting_twice_gives_the_same_bytes(network, model):
    assert export_onnx(network, TILE) == model
