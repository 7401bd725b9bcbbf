"""Instance normalisation that leaves channels last where they lie.

Torch's own copies such features to the other layout, and the next convolution copies them back: a third of a training
step on a CPU. Instance normalisation of one sample is batch normalisation of a batch of one, which torch computes in
either layout. Only its sums are taken again, slab by slab: over a whole patch, one float32 after another, they lose
three digits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_aten = torch.ops.aten


class InstanceNorm(nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` with scale and shift, faster on a CPU in memory format ``channels_last_3d``."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each channel of each sample of (N, C, Z, Y, X) over its voxels; the memory format is kept."""
        is_channels_last = features.is_contiguous(memory_format=torch.channels_last_3d) and not features.is_contiguous()
        if features.device.type != "cpu" or not is_channels_last:
            return super().forward(features)
        normalised: Tensor = _ChannelsLastNorm.apply(  # type: ignore[no-untyped-call]  # torch leaves apply untyped
            features, self.weight, self.bias, self.eps
        )
        return normalised


class _ChannelsLastNorm(torch.autograd.Function):
    """The samples one by one through torch's kernels of batch normalisation."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:  # noqa: ANN401
        samples = torch.split(features, 1)
        moments = [_moments(sample) for sample in samples]
        ctx.save_for_backward(
            features, weight, *(mean for mean, _ in moments), *((v + eps).rsqrt() for _, v in moments)
        )
        ctx.eps = eps
        return torch.cat(
            [
                _aten.native_batch_norm(sample, weight, bias, mean, variance, training=False, momentum=0.0, eps=eps)[0]
                for sample, (mean, variance) in zip(samples, moments, strict=True)
            ]
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        features, weight, *saved = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last_3d)
        means, inverse_sds = saved[: len(features)], saved[len(features) :]
        parts = [
            _aten.native_batch_norm_backward(
                *pair, weight, None, None, mean, inverse_sd, train=True, eps=ctx.eps, output_mask=[True] * 3
            )
            for *pair, mean, inverse_sd in zip(
                torch.split(grad, 1), torch.split(features, 1), means, inverse_sds, strict=True
            )
        ]
        of_features, of_weight, of_bias = zip(*parts, strict=True)
        return torch.cat(of_features), _sum(of_weight), _sum(of_bias), None


def _moments(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) float32 of each channel of (1, C, Z, Y, X): of each z, then put together in float64."""
    unused = torch.zeros(sample.shape[1]), torch.zeros(sample.shape[1])  # float32, else bfloat16 would come back
    slabs = [_aten.batch_norm_update_stats(slab, *unused, 0.0) for slab in torch.split(sample, 1, dim=2)]
    means, variances = (torch.stack(values).double() for values in zip(*slabs, strict=True))
    mean = means.mean(dim=0)
    variance = (variances + (means - mean) ** 2).mean(dim=0)
    return mean.float(), variance.float()


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(dim=0)
