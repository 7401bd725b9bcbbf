"""The network as it is exported: one tensor in, one out, no heads that only training needs.

Instance normalisation is written out. Engines sum a tile's 884,736 voxels one after another in float32, which
cost up to 8e-3 in a logit (OpenVINO 2026.4, ONNX Runtime 1.32: 2e-3) against 2e-5 for torch, all measured against
float64. Means taken axis by axis, as three poolings, are right to 2e-5 in every engine, for 15 % more time a
tile. Three plain means would not do: OpenVINO merges them back into one. The fp16 and int8 files round more than
that: they are made from a graph with the engines' own ``InstanceNormalization``.

Batch normalisation has nothing to sum at inference: it becomes a part of the convolution before it.
"""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d
from torch.nn.utils.fusion import fuse_conv_bn_eval

from covidseg_runtime.tiling import TileFit
from covidseg_train.hybrid import GlobalMean
from covidseg_train.unet import SegmentationNetwork

# Half as much again as the usual 96 cubed; the memory of a prediction grows with it.
LARGEST_TILE_VOXELS = 1_300_000
NormalisationForm = Literal["axis-wise", "native"]


class AxisWiseInstanceNorm(nn.Module):
    """``nn.InstanceNorm3d`` with means taken along x, then y, then z."""

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        """Take over scale, shift and epsilon."""
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach().view(1, -1, 1, 1, 1))
        self.bias = nn.Parameter(norm.bias.detach().view(1, -1, 1, 1, 1))
        self.eps = norm.eps

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (N, C, Z, Y, X) per image and channel."""
        centred = features - axis_wise_mean(features)
        variance = axis_wise_mean(centred * centred)
        return centred * (self.weight * torch.rsqrt(variance + self.eps)) + self.bias


def axis_wise_mean(features: Tensor) -> Tensor:
    """Mean over the voxels of (N, C, Z, Y, X), as (N, C, 1, 1, 1)."""
    _, _, z, y, x = features.shape
    features = avg_pool3d(features, (1, 1, x))
    features = avg_pool3d(features, (1, y, 1))
    return avg_pool3d(features, (z, 1, 1))


class AxisWiseGlobalMean(nn.Module):
    """``GlobalMean`` with means taken along x, then y, then z."""

    def forward(self, features: Tensor) -> Tensor:
        """Average (N, C, Z, Y, X) over its voxels, as (N, C)."""
        return axis_wise_mean(features).flatten(1)


class ExportableUNet(nn.Module):
    """Wraps a network so that its forward is the graph to export."""

    def __init__(self, network: SegmentationNetwork, normalisation: NormalisationForm = "axis-wise") -> None:
        """Copy the network and replace its sums over voxels; the network given is not changed.

        Args:
            network: The network.
            normalisation: ``axis-wise`` writes the means of instance normalisation and fusion out; ``native`` leaves
                the operators ``InstanceNormalization`` and a plain mean.
        """
        super().__init__()
        self.network = copy.deepcopy(network)
        fold_batch_normalisations(self.network)
        for module in list(self.network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.InstanceNorm3d):
                    setattr(module, name, _NORMS[normalisation](child))
                elif isinstance(child, GlobalMean) and normalisation == "axis-wise":
                    setattr(module, name, AxisWiseGlobalMean())
        self.eval()

    def forward(self, tiles: Tensor) -> Tensor:
        """Map tiles (N, 1, Z, Y, X) to logits (N, C, Z, Y, X); the heads that only training needs are left out."""
        return self.network.finest_logits(tiles)


def fold_batch_normalisations(network: nn.Module) -> None:
    """Put every batch normalisation, its running statistics included, into the convolution before it, in place."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.Sequential) and len(module) > 1:
            convolution, norm = module[0], module[1]
            if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                module[0], module[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()


def tile_fit(network: SegmentationNetwork) -> TileFit | None:
    """What tiles a network takes beside those it was exported for; None if something in it sums over the tile."""
    if any(isinstance(module, nn.InstanceNorm3d | GlobalMean) for module in network.modules()):
        return None
    return TileFit(network.spec.divisor(), LARGEST_TILE_VOXELS)


def plain_instance_norm(norm: nn.InstanceNorm3d) -> nn.InstanceNorm3d:
    """Torch's own module with the scale, shift and epsilon of ``norm``: the training's does not export."""
    plain = nn.InstanceNorm3d(norm.num_features, eps=norm.eps, affine=True)
    plain.load_state_dict(norm.state_dict())
    return plain


_NORMS: Mapping[NormalisationForm, Callable[[nn.InstanceNorm3d], nn.Module]] = MappingProxyType(
    {"axis-wise": AxisWiseInstanceNorm, "native": plain_instance_norm}
)
