"""Where infection begins: one number added to its logit, chosen on cases that the network did not learn from.

These are the cases that validated the training; or, better where the target's own cases are few, those that other folds
of the recipe held out, each by the network that had not met it. The network's own held-out cases have no part in it.

A network trained on few patients may find too little, or too much, on all others alike. What maximises DSC is a
threshold on the probability that depends on the data (Koyejo et al., Consistent Binary Classification with Generalized
Performance Metrics, NeurIPS 2014), not the highest class. The number goes into the bias of the last convolution, so
every engine and precision has it, and no runtime needs to know.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from covidseg_export.calibration import LungVoxels, chosen_by
from covidseg_export.ensemble import FoldEnsemble
from covidseg_train.unet import SegmentationNetwork

STEP, LOWEST, HIGHEST = 0.25, -2.0, 3.0


@dataclass(frozen=True)
class Decision:
    """What was chosen, and what it changes on the cases it was chosen on.

    Attributes:
        offset: Added to the logit of infection.
        cases: Their names.
        dsc_before: Mean DSC of infection without it, on the voxels of their lungs.
        dsc_after: With it.
        folds: How many other folds held the cases out; 0: they validated the training.
    """

    offset: float
    cases: tuple[str, ...]
    dsc_before: float
    dsc_after: float
    folds: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for bundle.json."""
        return {
            "infection_offset": self.offset,
            "cases": list(self.cases),
            "folds": self.folds,
            "dsc": {"before": round(self.dsc_before, 4), "after": round(self.dsc_after, 4)},
        }


def decision_in_a_line(section: Mapping[str, Any]) -> str:
    """The section ``decision`` of bundle.json, for a terminal and the model card."""
    dsc = section["dsc"]
    return (
        f"{section['infection_offset']:+g} on the logit of infection, chosen on the {len(section['cases'])} cases that "
        f"{chosen_by(section)} (mean DSC in their lungs {dsc['before']:.3f} to {dsc['after']:.3f})"
    )


def takes_offset(network: SegmentationNetwork) -> bool:
    """Whether the network's logits are those of one last convolution; an ensemble's are not."""
    return not isinstance(network, FoldEnsemble)


def choose_offset(cases: Sequence[LungVoxels]) -> Decision:
    """The offset of the highest mean DSC, in steps of 0.25 from -2 to 3; of equal ones that nearest to 0.

    Args:
        cases: At least one of them infected; one that is not counts for nothing.
    """
    infected = [one for one in cases if one.infected.any()]
    offsets = np.arange(LOWEST, HIGHEST + STEP / 2, STEP)
    means = {float(offset): float(np.mean([dsc_at(one, offset) for one in infected])) for offset in offsets}
    best = min(means, key=lambda offset: (-round(means[offset], 4), abs(offset)))
    return Decision(best, tuple(one.case for one in cases), means[0.0], means[best])


def dsc_at(one: LungVoxels, offset: float) -> float:
    """DSC of infection on these voxels with ``offset`` added to its logit."""
    found = one.logits[-1] + np.float32(offset) > one.logits[:-1].max(axis=0)
    return float(2 * np.count_nonzero(found & one.infected) / (found.sum() + one.infected.sum()))


def with_offset(network: SegmentationNetwork, offset: float) -> SegmentationNetwork:
    """A copy of the network whose last class, infection, has ``offset`` added to its logit."""
    moved = copy.deepcopy(network)
    head = moved.heads[0]
    if not isinstance(head, nn.Conv3d) or head.bias is None:
        raise TypeError(f"the head of a {type(network).__name__} has no bias")
    with torch.no_grad():
        head.bias[-1] += offset
    return moved
