"""Dice + cross-entropy with deep supervision, nnU-Net's loss."""

from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn.functional import interpolate


class DeepSupervisionLoss(nn.Module):
    """Weighted sum of Dice + cross-entropy over the supervised levels.

    Level weights halve from fine to coarse and sum to 1. Dice leaves the background out and pools the whole
    batch (``batch_dice``), with 1e-5 as smoothing; both terms have weight 1.
    """

    def __init__(self) -> None:
        """Build the loss of one level."""
        super().__init__()
        self.level_loss = DiceCELoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            batch=True,
            smooth_nr=1e-5,
            smooth_dr=1e-5,
        )

    def forward(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: One (N, C, z, y, x) tensor a level, finest first.
            labels: (N, 1, Z, Y, X), integer classes at the finest level.

        Returns:
            Scalar tensor.
        """
        weights = [0.5**level for level in range(len(logits))]
        total = torch.zeros((), device=labels.device)
        for weight, level_logits in zip(weights, logits, strict=True):
            level_labels = nearest_labels(labels, level_logits.shape[2:])
            total = total + weight / sum(weights) * self.level_loss(level_logits.float(), level_labels)
        return total


def nearest_labels(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Labels (N, 1, Z, Y, X) at a coarser ``shape``, by the nearest voxel."""
    if tuple(labels.shape[2:]) == tuple(shape):
        return labels
    return interpolate(labels.float(), size=list(shape), mode="nearest-exact").to(labels.dtype)
