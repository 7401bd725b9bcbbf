"""What is exported can be read from a run, from folds and from a bundle, and is the same network."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from phantom import tiny_description
from torch import nn

from covidseg_export.ensemble import FoldEnsemble
from covidseg_export.fine_tuning import write_weights
from covidseg_export.source import describe_network, load_bundle_network
from covidseg_export.to_onnx import OPSET, export_onnx
from covidseg_runtime.bundle import default_bundle_path, load_bundle
from covidseg_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from covidseg_runtime.errors import BundleError, SettingsError
from covidseg_train.hybrid import HybridEncoderUNet
from covidseg_train.unet import UNet3d, UNetSpec

SPEC = UNetSpec(widths=(4, 8), strides=((2, 2, 1),), supervised_levels=1, finest_kernel=(1, 3, 3))
TILE = (16, 16, 8)


def randomised(network):
    for parameter in network.parameters():
        if parameter.ndim < 2:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network.eval()


def write_bundle(folder, network):
    model = export_onnx(network, TILE)
    description = tiny_description(model)
    description["classes"] = ["background", "lung", "infection"]
    description["tile_plan"] = {"tile_shape": list(TILE), "step": 0.5}
    description["network"] = describe_network(network, OPSET)
    description["files"][0]["sha256"] = hashlib.sha256(model).hexdigest()
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    (folder / "bundle.json").write_text(json.dumps(description))
    return load_bundle(folder)


@pytest.mark.parametrize(
    "build",
    [UNet3d, HybridEncoderUNet, lambda spec: HybridEncoderUNet(spec, "concatenation")],
    ids=["plain", "selective", "concatenation"],
)
def test_a_bundle_gives_its_network_back_bit_for_bit(tmp_path, build):
    torch.manual_seed(0)
    network = randomised(build(SPEC))
    restored = load_bundle_network(write_bundle(tmp_path / "bundle", network))
    assert type(restored) is type(network)
    assert restored.spec == network.spec
    for name, value in network.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value), name


@pytest.mark.parametrize("build", [UNet3d, HybridEncoderUNet])
def test_a_bundle_gives_a_network_with_batch_normalisation_back_with_the_statistics_folded_in(tmp_path, build):
    torch.manual_seed(0)
    network = randomised(build(replace(SPEC, normalisation="batch")))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -1.0, 1.0)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    restored = load_bundle_network(write_bundle(tmp_path / "bundle", network))
    assert not any(isinstance(module, nn.BatchNorm3d) for module in restored.modules())
    image = torch.randn(1, 1, *TILE)
    with torch.no_grad():
        torch.testing.assert_close(restored.finest_logits(image), network.finest_logits(image), atol=1e-4, rtol=1e-4)


def test_the_shipped_bundle_can_be_rebuilt_and_says_what_its_graph_says():
    bundle = load_bundle(default_bundle_path())
    tile = np.random.default_rng(0).normal(size=(1, 1, *bundle.tile_plan.tile_shape)).astype(np.float32)
    with torch.inference_mode():
        expected = load_bundle_network(bundle).finest_logits(torch.from_numpy(tile)).numpy()
    engine = OnnxRuntimeEngine(bundle.model_path())
    np.testing.assert_allclose(engine.predict(tile), expected, atol=1e-3)


def test_a_bundle_that_does_not_describe_its_network_is_one_sentence(tmp_path, tiny_bundle):
    with pytest.raises(BundleError, match="does not describe its network"):
        load_bundle_network(load_bundle(tiny_bundle))


def test_an_ensemble_gives_no_weights(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", FoldEnsemble([randomised(UNet3d(SPEC)) for _ in range(2)]).eval())
    with pytest.raises(BundleError, match="FoldEnsemble, which cannot be rebuilt in torch"):
        write_weights(bundle, tmp_path / "weights.safetensors")
    assert not (tmp_path / "weights.safetensors").exists()


def test_an_ensemble_averages_probabilities():
    torch.manual_seed(1)
    folds = [randomised(UNet3d(SPEC)) for _ in range(3)]
    tiles = torch.randn(2, 1, *TILE)
    with torch.inference_mode():
        mean = torch.stack([fold.finest_logits(tiles).softmax(dim=1) for fold in folds]).mean(dim=0)
        averaged = FoldEnsemble(folds).eval().finest_logits(tiles).softmax(dim=1)
    torch.testing.assert_close(averaged, mean, atol=1e-6, rtol=1e-5)


def test_an_ensemble_is_one_graph_of_the_same_answer(tmp_path):
    torch.manual_seed(2)
    ensemble = FoldEnsemble([randomised(UNet3d(SPEC)) for _ in range(2)]).eval()
    tiles = np.random.default_rng(3).normal(size=(1, 1, *TILE)).astype(np.float32)
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(ensemble, TILE))
    with torch.inference_mode():
        expected = ensemble.finest_logits(torch.from_numpy(tiles)).numpy()
    np.testing.assert_allclose(OnnxRuntimeEngine(path).predict(tiles), expected, atol=1e-4)


def test_an_ensemble_of_different_classes_is_refused():
    with pytest.raises(SettingsError, match="networks of one kind"):
        FoldEnsemble(
            [UNet3d(SPEC), UNet3d(UNetSpec(classes=2, widths=(4, 8), strides=((2, 2, 1),), supervised_levels=1))]
        )
