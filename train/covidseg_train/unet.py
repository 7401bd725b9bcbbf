"""The 3D U-Net, read top to bottom.

Encoder and decoder are parts of their own, so that a strategy can move one without the other. The design is
nnU-Net's (Isensee et al., Nature Methods 2021): two Conv–InstanceNorm–LeakyReLU blocks a stage, strided
convolution down, transposed convolution up, a 1×1×1 head at each of the finest decoder levels for deep
supervision. Only operators that ONNX Runtime, OpenVINO and TensorRT run natively in 3D are used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from covidseg_runtime.errors import SettingsError

Stride = tuple[int, int, int]


@dataclass(frozen=True)
class UNetSpec:
    """Size and shape of a U-Net.

    Attributes:
        in_channels: Channels of the image; 1 for CT.
        classes: Channels of the logits, background included: background, lung, infection.
        widths: Feature channels of each stage, finest first.
        strides: Down-sampling (z, y, x) between stage i and i + 1; one fewer than ``widths``.
        supervised_levels: Decoder levels with a head, finest first; 1 means no deep supervision.
    """

    in_channels: int = 1
    classes: int = 3
    widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    strides: tuple[Stride, ...] = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    supervised_levels: int = 3

    def __post_init__(self) -> None:
        """Refuse a list of strides that does not fit the stages."""
        if len(self.strides) != len(self.widths) - 1:
            raise SettingsError(
                f"{len(self.widths)} widths need {len(self.widths) - 1} strides, {len(self.strides)} were given."
            )
        if not 1 <= self.supervised_levels <= len(self.strides):
            raise SettingsError(
                f"supervised_levels is {self.supervised_levels}; 1 to {len(self.strides)} fits these stages."
            )

    def divisor(self) -> tuple[int, int, int]:
        """Smallest (z, y, x) by which a patch must be divisible."""
        z, y, x = 1, 1, 1
        for stride in self.strides:
            z, y, x = z * stride[0], y * stride[1], x * stride[2]
        return z, y, x


class ConvBlock(nn.Sequential):
    """Convolution 3×3×3, instance normalisation, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: Stride = (1, 1, 1)) -> None:
        """Build one block; ``stride`` down-samples (z, y, x)."""
        super().__init__(
            nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.InstanceNorm3d(out_channels, eps=1e-5, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class Encoder(nn.Module):
    """Image to one feature map a stage."""

    def __init__(self, spec: UNetSpec) -> None:
        """Build the stages; every stage but the first begins with a strided convolution."""
        super().__init__()
        in_channels = (spec.in_channels, *spec.widths[:-1])
        strides: tuple[Stride, ...] = ((1, 1, 1), *spec.strides)
        self.stages = nn.ModuleList(
            nn.Sequential(ConvBlock(c_in, c_out, stride), ConvBlock(c_out, c_out))
            for c_in, c_out, stride in zip(in_channels, spec.widths, strides, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (N, C, Z, Y, X) to the features of every stage, finest first."""
        features = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        return features


class Decoder(nn.Module):
    """Features of every stage to decoded features at every level but the coarsest."""

    def __init__(self, spec: UNetSpec) -> None:
        """Build the levels from coarse to fine."""
        super().__init__()
        coarse_to_fine = list(zip(spec.widths[1:], spec.widths[:-1], spec.strides, strict=True))[::-1]
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, kernel_size=stride, stride=stride)
            for coarse, fine, stride in coarse_to_fine
        )
        self.levels = nn.ModuleList(
            nn.Sequential(ConvBlock(2 * fine, fine), ConvBlock(fine, fine)) for _, fine, _ in coarse_to_fine
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map encoder features (finest first) to decoded features (finest first)."""
        decoded: list[Tensor] = []
        current = features[-1]
        for up, level, skip in zip(self.ups, self.levels, features[-2::-1], strict=True):
            current = level(torch.cat((up(current), skip), dim=1))
            decoded.append(current)
        return decoded[::-1]


class UNet3d(nn.Module):
    """Encoder, decoder and one 1×1×1 head for each supervised level."""

    def __init__(self, spec: UNetSpec) -> None:
        """Build the parts and initialise the weights (He, as nnU-Net)."""
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)
        self.heads = nn.ModuleList(
            nn.Conv3d(width, spec.classes, kernel_size=1) for width in spec.widths[: spec.supervised_levels]
        )
        self.apply(initialise_he)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (N, 1, Z, Y, X) to logits (N, classes, z, y, x) of every supervised level, finest first."""
        decoded = self.decoder(self.encoder(image))
        return [head(features) for head, features in zip(self.heads, decoded, strict=False)]

    def finest_logits(self, image: Tensor) -> Tensor:
        """Map (N, 1, Z, Y, X) to logits (N, classes, Z, Y, X); the other heads are not computed."""
        logits: Tensor = self.heads[0](self.decoder(self.encoder(image))[0])
        return logits


def initialise_he(module: nn.Module) -> None:
    """Set convolution weights by He et al. 2015 for leaky ReLU with slope 0.01, biases to zero."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def count_parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters())
