"""The 3D U-Net, read top to bottom.

Encoder and decoder are parts of their own, so that a strategy can move one without the other. The design is
nnU-Net's (Isensee et al., Nature Methods 2021): two Conv–Norm–LeakyReLU blocks a stage, strided convolution down,
transposed convolution up, a 1×1×1 head at each of the finest decoder levels for deep supervision. Only operators
that ONNX Runtime, OpenVINO and TensorRT run natively in 3D are used.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from covidseg_runtime.errors import SettingsError
from covidseg_train.instance_norm import InstanceNorm

Triple = tuple[int, int, int]
Normalisation = Literal["instance", "batch"]
# Batches of two patches are small: running statistics remember some 30 of them instead of torch's ten.
BATCH_MOMENTUM = 0.03


@dataclass(frozen=True)
class UNetSpec:
    """Size and shape of a U-Net.

    Attributes:
        in_channels: Channels of the image; 1 for CT.
        classes: Channels of the logits, background included.
        widths: Feature channels of each stage, finest first.
        strides: Down-sampling (z, y, x) between stage i and i + 1; one fewer than ``widths``.
        supervised_levels: Decoder levels with a head, finest first; 1 means no deep supervision.
        finest_kernel: Convolution kernel (z, y, x) of the finest stage; (1, 3, 3) where slices are thick.
        normalisation: ``instance`` is nnU-Net's and the paper's. ``batch`` keeps running statistics: what a tile
            answers does not depend on what else the tile holds, and it folds into the convolution at export.
    """

    in_channels: int = 1
    classes: int = 3
    widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    strides: tuple[Triple, ...] = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    supervised_levels: int = 3
    finest_kernel: Triple = (3, 3, 3)
    normalisation: Normalisation = "instance"

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
        if any(n not in (1, 3) for n in self.finest_kernel):
            raise SettingsError(f"finest_kernel is {self.finest_kernel}; each number must be 1 or 3.")

    def kernels(self) -> tuple[Triple, ...]:
        """Convolution kernel (z, y, x) of each stage, finest first."""
        return (self.finest_kernel, *(((3, 3, 3),) * (len(self.widths) - 1)))

    def divisor(self) -> Triple:
        """Smallest (z, y, x) by which a patch must be divisible."""
        z, y, x = 1, 1, 1
        for stride in self.strides:
            z, y, x = z * stride[0], y * stride[1], x * stride[2]
        return z, y, x


# The network of the COVID-19-CT-Seg benchmark (Ma et al. 2021, Fig. 2), for patches of 56×160×192.
BENCHMARK_SPEC = UNetSpec(
    classes=2,
    widths=(32, 64, 128, 256, 320, 320),
    strides=((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
    supervised_levels=4,
    finest_kernel=(1, 3, 3),
)


@dataclass(frozen=True)
class BlockSpec:
    """What the blocks of one stage share: kernel (z, y, x) and normalisation."""

    kernel: Triple
    normalisation: Normalisation


class ConvBlock(nn.Sequential):
    """Convolution, normalisation, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, block: BlockSpec, stride: Triple = (1, 1, 1)) -> None:
        """Build one block; ``stride`` down-samples (z, y, x)."""
        z, y, x = (n // 2 for n in block.kernel)
        super().__init__(
            nn.Conv3d(in_channels, out_channels, block.kernel, stride=stride, padding=(z, y, x), bias=False),
            _normalisation(block.normalisation, out_channels),
            nn.LeakyReLU(0.01, inplace=True),
        )


def _normalisation(kind: Normalisation, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm3d(channels, eps=1e-5, momentum=BATCH_MOMENTUM)
    return InstanceNorm(channels, eps=1e-5, affine=True)


class Encoder(nn.Module):
    """Image to one feature map a stage."""

    def __init__(self, spec: UNetSpec) -> None:
        """Build the stages; every stage but the first begins with a strided convolution."""
        super().__init__()
        in_channels = (spec.in_channels, *spec.widths[:-1])
        strides: tuple[Triple, ...] = ((1, 1, 1), *spec.strides)
        blocks = [BlockSpec(kernel, spec.normalisation) for kernel in spec.kernels()]
        self.stages = nn.ModuleList(
            nn.Sequential(ConvBlock(c_in, c_out, block, stride), ConvBlock(c_out, c_out, block))
            for c_in, c_out, block, stride in zip(in_channels, spec.widths, blocks, strides, strict=True)
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
        blocks = [BlockSpec(kernel, spec.normalisation) for kernel in spec.kernels()[:-1]]
        coarse_to_fine = list(zip(spec.widths[1:], spec.widths[:-1], spec.strides, blocks, strict=True))[::-1]
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, kernel_size=stride, stride=stride)
            for coarse, fine, stride, _ in coarse_to_fine
        )
        self.levels = nn.ModuleList(
            nn.Sequential(ConvBlock(2 * fine, fine, block), ConvBlock(fine, fine, block))
            for _, fine, _, block in coarse_to_fine
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map encoder features (finest first) to decoded features (finest first)."""
        decoded: list[Tensor] = []
        current = features[-1]
        for up, level, skip in zip(self.ups, self.levels, features[-2::-1], strict=True):
            current = level(torch.cat((up(current), skip), dim=1))
            decoded.append(current)
        return decoded[::-1]


class Heads(nn.ModuleList):
    """One 1×1×1 convolution for each supervised level: decoded features to logits."""

    def __init__(self, spec: UNetSpec) -> None:
        """Build a head a level, finest first."""
        super().__init__(
            nn.Conv3d(width, spec.classes, kernel_size=1) for width in spec.widths[: spec.supervised_levels]
        )

    def forward(self, decoded: Sequence[Tensor]) -> list[Tensor]:
        """Map decoded features to logits (N, classes, z, y, x) of every supervised level, finest first."""
        return [head(features) for head, features in zip(self, decoded, strict=False)]


class SegmentationNetwork(nn.Module):
    """What every network here can do; a subclass says how an image is encoded.

    Attributes:
        decoder: Features to decoded features.
        heads: Decoded features to logits.
    """

    spec: UNetSpec
    decoder: Decoder
    heads: Heads

    @abstractmethod
    def encode(self, image: Tensor) -> list[Tensor]:
        """Map (N, 1, Z, Y, X) to the features that the decoder takes, finest first."""

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (N, 1, Z, Y, X) to logits (N, classes, z, y, x) of every supervised level, finest first."""
        logits: list[Tensor] = self.heads(self.decoder(self.encode(image)))
        return logits

    def finest_logits(self, image: Tensor) -> Tensor:
        """Map (N, 1, Z, Y, X) to logits (N, classes, Z, Y, X); the other heads are not computed."""
        logits: Tensor = self.heads[0](self.decoder(self.encode(image))[0])
        return logits


class UNet3d(SegmentationNetwork):
    """One encoder, one decoder, one head for each supervised level."""

    def __init__(self, spec: UNetSpec) -> None:
        """Build the parts and initialise the weights (He, as nnU-Net)."""
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)
        self.heads = Heads(spec)
        self.apply(initialise_he)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Map (N, 1, Z, Y, X) to the features of every stage, finest first."""
        features: list[Tensor] = self.encoder(image)
        return features


class MultiTaskUNet(UNet3d):
    """A U-Net whose body several tasks share, with heads of its own for each task.

    A batch supervises the heads of its own task: a data set that marks nodules says nothing about effusions.
    ``heads`` is those of the first task.
    """

    def __init__(self, spec: UNetSpec, tasks: Sequence[str]) -> None:
        """Build a body and the heads of every task but the first, whose heads the body brings."""
        super().__init__(spec)
        self.tasks = tuple(tasks)
        self.other_heads = nn.ModuleDict({task: Heads(spec) for task in self.tasks[1:]})
        self.other_heads.apply(initialise_he)

    def heads_of(self, task: str) -> Heads:
        """The heads of one task."""
        if task == self.tasks[0]:
            return self.heads
        heads = self.other_heads[task]
        if not isinstance(heads, Heads):
            raise TypeError(f"{task} has no heads")
        return heads

    def forward(self, image: Tensor, task: str | None = None) -> list[Tensor]:
        """Map (N, 1, Z, Y, X) to the logits of one task (None: the first), as ``UNet3d``."""
        logits: list[Tensor] = self.heads_of(task or self.tasks[0])(self.decoder(self.encode(image)))
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
