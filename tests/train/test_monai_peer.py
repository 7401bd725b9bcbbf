"""torch + MONAI label a scan as the runtime does: same grid, same window, same tiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom import INTERCEPTS, PHANTOM_SPACING_MM, SLOPES, phantom_hu, phantom_labels, pointwise_logits, spl_affine

from covidseg_runtime.bundle import ModelBundle, load_bundle
from covidseg_runtime.errors import EngineError
from covidseg_runtime.segment_settings import SegmentSettings
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.volume import Volume, reorient_array, to_orientation
from covidseg_train.monai_peer import MonaiPeer
from covidseg_train.torch_engine import TorchEngine
from covidseg_train.unet import SegmentationNetwork


class PointwiseNetwork(SegmentationNetwork):
    """The tiny network in torch: a straight line a class."""

    def finest_logits(self, image):
        slopes, intercepts = (torch.from_numpy(line)[:, None, None, None] for line in (SLOPES, INTERCEPTS))
        return image * slopes + intercepts


class SmoothingNetwork(PointwiseNetwork):
    """The same of the mean of 3x3x3 voxels: what lies beyond a tile counts."""

    def finest_logits(self, image):
        return super().finest_logits(torch.nn.functional.avg_pool3d(image, 3, stride=1, padding=1))


@pytest.fixture
def bundle(tiny_bundle: Path) -> ModelBundle:
    return load_bundle(tiny_bundle)


@pytest.fixture
def scan() -> Volume:
    return Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM))


@pytest.mark.parametrize("orientation", ["SPL", "LAS", "RPI"])
def test_labels_lie_on_the_scans_own_grid(bundle: ModelBundle, scan: Volume, orientation: str) -> None:
    turned = to_orientation(scan, orientation)
    labels = MonaiPeer(PointwiseNetwork(), bundle, device="cpu").segment(turned)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(reorient_array(labels, orientation, "SPL"), phantom_labels())


def _agreement(network: SegmentationNetwork, bundle: ModelBundle, scan: Volume) -> float:
    """Share of voxels to which the runtime and the peer give one label, the same network in both."""
    engine = TorchEngine(network, device=torch.device("cpu"))
    runtime = Segmenter(bundle, engine, SegmentSettings(min_lesion_ml=0)).segment(scan).labels
    assert set(np.unique(runtime)) == {0, 1, 2, 3}
    return float((MonaiPeer(network, bundle, device="cpu").segment(scan) == runtime).mean())


# Half a voxel off, as when the corners of two grids and not their borders meet, gives 0.971, 0.984 and 0.960.
@pytest.mark.parametrize(
    ("spacing_mm", "least"), [((1.0, 1.0, 1.0), 0.985), ((1.6, 1.2, 1.8), 0.99), ((2.5, 2.0, 2.0), 0.97)]
)
def test_another_spacing_is_resampled_as_by_the_runtime(
    bundle: ModelBundle, scan: Volume, spacing_mm: tuple[float, float, float], least: float
) -> None:
    """Where the model's grid is coarser only the runtime keeps noise from aliasing, so borders of labels may move."""
    other = replace(bundle, preprocessing=replace(bundle.preprocessing, spacing_mm=spacing_mm))
    assert _agreement(PointwiseNetwork(), other, scan) > least


def test_tiles_with_context_are_blended_as_by_the_runtime(bundle: ModelBundle, scan: Volume) -> None:
    """MONAI rounds the step of its tiles otherwise, which only borders of tiles notice."""
    assert _agreement(SmoothingNetwork(), bundle, scan) > 0.999


def test_tiles_are_predicted_as_by_the_network(bundle: ModelBundle) -> None:
    peer = MonaiPeer(PointwiseNetwork(), bundle, device="cpu")
    tiles = np.random.default_rng(7).uniform(-10, 2, (1, 1, 16, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(peer.predict(tiles), pointwise_logits(tiles), rtol=0, atol=1e-5)
    assert peer.device == "cpu"


def test_what_it_cannot_do_is_refused(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="run in f32 or bf16, not in int8"):
        MonaiPeer(PointwiseNetwork(), bundle, device="cpu", precision="int8")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(EngineError, match="cpu does not multiply bf16 natively"):
        MonaiPeer(PointwiseNetwork(), bundle, device="cpu", precision="bf16")
