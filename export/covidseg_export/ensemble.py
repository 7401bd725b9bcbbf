"""Several folds as one network: the mean of their probabilities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from covidseg_runtime.errors import SettingsError
from covidseg_train.unet import SegmentationNetwork

SMALLEST_PROBABILITY = 1e-7


class FoldEnsemble(SegmentationNetwork):
    """Averages the probabilities of networks that take and tell apart the same.

    The answer is the logarithm of the mean probability, so that it stands where a single network's logits stand: its
    softmax is the mean, its argmax the most probable class.
    """

    def __init__(self, members: Sequence[SegmentationNetwork]) -> None:
        """Keep the networks.

        Raises:
            SettingsError: If they tell apart different numbers of classes, or take different channels.
        """
        super().__init__()
        kinds = {(member.spec.classes, member.spec.in_channels) for member in members}
        if len(kinds) != 1:
            raise SettingsError(
                f"an ensemble needs networks of one kind; these have {sorted(kinds)} classes, channels."
            )
        self.spec = members[0].spec
        self.members = nn.ModuleList(members)

    @property
    def folds(self) -> tuple[SegmentationNetwork, ...]:
        """The networks."""
        return tuple(member for member in self.members if isinstance(member, SegmentationNetwork))

    def encode(self, image: Tensor) -> list[Tensor]:
        """Refuse: an ensemble has no features of its own, and nothing asks it for any."""
        raise TypeError("an ensemble has one encoder a fold and none of its own; call finest_logits")

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (N, 1, Z, Y, X) to one level of logits."""
        return [self.finest_logits(image)]

    def finest_logits(self, image: Tensor) -> Tensor:
        """Map (N, 1, Z, Y, X) to log mean probabilities (N, classes, Z, Y, X)."""
        total: Tensor | None = None
        for member in self.folds:
            probabilities = member.finest_logits(image).softmax(dim=1)
            total = probabilities if total is None else total + probabilities
        if total is None:
            raise SettingsError("an ensemble needs at least one network.")
        return torch.log(total * (1.0 / len(self.members)) + SMALLEST_PROBABILITY)
