"""Hybrid-encoder learning: two encoders that see the same patch, fused for one decoder.

The dedicated encoder starts from random weights and learns COVID-19 infection; the adapted encoder starts from
other lung lesions (Wang et al., Comput Methods Programs Biomed 202:106004). How the two are fused is not in the
material we have; the form of selective kernels (Li et al., CVPR 2019) is our reading, concatenation the ablation.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from covidseg_train.unet import Decoder, Encoder, Heads, SegmentationNetwork, UNetSpec, initialise_he

Fusion = Literal["selective", "concatenation"]
REDUCTION = 16
SMALLEST_BOTTLENECK = 32


class GlobalMean(nn.Module):
    """Mean over the voxels: (N, C, Z, Y, X) to (N, C)."""

    def forward(self, features: Tensor) -> Tensor:
        """Average each channel."""
        return features.mean(dim=(2, 3, 4))


class SelectiveFusion(nn.Module):
    """Per-channel choice between two feature maps.

    ``U = A + D``; global mean; bottleneck of ``max(C / 16, 32)`` with layer normalisation and ReLU; one weight a
    channel and branch by softmax over the two branches; ``V = a·A + (1 − a)·D``.
    """

    def __init__(self, channels: int) -> None:
        """Build the bottleneck and the selection of ``channels`` channels."""
        super().__init__()
        width = max(channels // REDUCTION, SMALLEST_BOTTLENECK)
        self.mean = GlobalMean()
        self.squeeze = nn.Sequential(nn.Linear(channels, width, bias=False), nn.LayerNorm(width), nn.ReLU())
        self.select = nn.Linear(width, 2 * channels)

    def forward(self, adapted: Tensor, dedicated: Tensor) -> Tensor:
        """Fuse two maps (N, C, Z, Y, X) into one of the same shape."""
        batch, channels = adapted.shape[:2]
        scores = self.select(self.squeeze(self.mean(adapted + dedicated)))
        share = scores.view(batch, 2, channels, 1, 1, 1).softmax(dim=1)
        fused: Tensor = share[:, 0] * adapted + share[:, 1] * dedicated
        return fused


class ConcatenationFusion(nn.Module):
    """Both maps side by side, brought back to C channels by a 1×1×1 convolution."""

    def __init__(self, channels: int) -> None:
        """Build the convolution of ``2 * channels`` to ``channels``."""
        super().__init__()
        self.mix = nn.Conv3d(2 * channels, channels, kernel_size=1)

    def forward(self, adapted: Tensor, dedicated: Tensor) -> Tensor:
        """Fuse two maps (N, C, Z, Y, X) into one of the same shape."""
        fused: Tensor = self.mix(torch.cat((adapted, dedicated), dim=1))
        return fused


class HybridEncoderUNet(SegmentationNetwork):
    """Dedicated and adapted encoder, fusion at every skip and the bottleneck, one decoder."""

    def __init__(self, spec: UNetSpec, fusion: Fusion = "selective") -> None:
        """Build the parts with random weights; ``covidseg_train.transfer`` fills the adapted encoder."""
        super().__init__()
        self.spec = spec
        self.dedicated_encoder = Encoder(spec)
        self.adapted_encoder = Encoder(spec)
        kind = SelectiveFusion if fusion == "selective" else ConcatenationFusion
        self.fusions = nn.ModuleList(kind(width) for width in spec.widths)
        self.decoder = Decoder(spec)
        self.heads = Heads(spec)
        self.apply(initialise_he)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Map (N, 1, Z, Y, X) to the fused features of every stage, finest first."""
        pairs = zip(self.fusions, self.adapted_encoder(image), self.dedicated_encoder(image), strict=True)
        return [fuse(adapted, dedicated) for fuse, adapted, dedicated in pairs]
