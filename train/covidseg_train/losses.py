"""Dice + cross-entropy with deep supervision, nnU-Net's loss, over the whole batch of all ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from covidseg_train.distributed import sum_over_ranks

# Voxels of which nothing is known, such as those beyond the border of a crop: they take no part in the loss.
IGNORED = 255
# Voxels in the lung of which nobody knows whether they are lesion: every class but the background is right.
IN_LUNG = 254
SMOOTH = 1e-5


class DeepSupervisionLoss(nn.Module):
    """Weighted sum of Dice + cross-entropy over the supervised levels; weights halve from fine to coarse, sum 1."""

    def forward(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: One (N, C, z, y, x) tensor a level, finest first.
            labels: (N, 1, Z, Y, X) uint8, classes at the finest level; 255 is ignored, 254 is any class but 0.

        Returns:
            Scalar tensor; under `torchrun` the loss of the batch of all ranks.
        """
        weights = [0.5**level for level in range(len(logits))]
        total = torch.zeros((), device=labels.device)
        for weight, level_logits in zip(weights, logits, strict=True):
            level_labels = nearest_labels(labels, level_logits.shape[2:])
            total = total + weight / sum(weights) * dice_cross_entropy(level_logits, level_labels)
        return total


def dice_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the foreground classes of ``1 − Dice``, plus mean cross-entropy, weights 1 : 1.

    Dice is soft and pools the whole batch: ``(2 Σ p·g + s) / (Σ p + Σ g + s)`` with s = 1e-5 (nnU-Net's batch
    Dice, Isensee et al. 2021).

    Args:
        logits: (N, C, z, y, x); computed in float32 whatever their type.
        labels: (N, 1, z, y, x) uint8 classes; 255 is ignored. 254 is any class but the background: the cross-entropy is
            that of their sum, and Dice leaves these voxels out.
    """
    logits = logits.float()
    in_lung = (labels == IN_LUNG)[:, 0]
    known = (labels < IN_LUNG)[:, 0]
    classes = labels[:, 0].long().masked_fill(in_lung, IGNORED)
    p = logits.softmax(dim=1)
    sums = []
    for foreground in range(1, logits.shape[1]):
        truth = (labels == foreground)[:, 0]
        p_class = p[:, foreground] * known
        sums += [(p_class * truth).sum(), p_class.sum(), truth.sum().float()]
    entropy = cross_entropy(logits, classes, ignore_index=IGNORED, reduction="sum")
    undecided = logits.movedim(1, -1)[in_lung]  # (voxels, C): few, and none without opaque masses
    entropy = entropy + (undecided.logsumexp(dim=1) - undecided[:, 1:].logsumexp(dim=1)).sum()
    sums += [entropy, (known | in_lung).sum().float()]
    whole = sum_over_ranks(torch.stack(sums))
    overlap, predicted, marked = whole[:-2].view(-1, 3).unbind(dim=1)
    dice = (2 * overlap + SMOOTH) / (predicted + marked + SMOOTH)
    return (1.0 - dice).mean() + whole[-2] / whole[-1].clamp(min=1.0)


def nearest_labels(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Labels (N, 1, Z, Y, X) at a coarser ``shape``, by the nearest voxel."""
    if tuple(labels.shape[2:]) == tuple(shape):
        return labels
    return interpolate(labels.float(), size=list(shape), mode="nearest-exact").to(labels.dtype)
