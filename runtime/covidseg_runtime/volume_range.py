"""How far the infection's volume may be off, told by the patients that the model did not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covidseg_runtime.bundle import ModelBundle

# Fewer ratios say nothing of the next one.
FEWEST_CASES = 5
SHARE = 0.8


@dataclass(frozen=True)
class VolumeRange:
    """Where the true volume lies if the scan is like those measured.

    Attributes:
        low_ml: Lower end.
        high_ml: Upper end.
        cases: Held-out cases whose ratios gave the range.
        share: Share of these ratios that lie within.
    """

    low_ml: float
    high_ml: float
    cases: int
    share: float = SHARE


def volume_range(bundle: ModelBundle, infection_ml: float) -> VolumeRange | None:
    """Scale a volume by the ratios of reference to prediction on the bundle's held-out cases.

    Where the bundle tells of a cross-validation of its recipe, its cases count instead: a network that learned from
    nearly all patients has too few left.

    The middle 80 % of the ratios count (their 10th and 90th percentile, interpolated). Ratios do not depend on the
    voxel size, so cases of guessed spacing count as well.

    Args:
        bundle: The model; its ``metrics.cross_validation`` or ``metrics.held_out`` says what was measured.
        infection_ml: Infection found in a scan.

    Returns:
        The range; None where the bundle tells of fewer than five such cases.
    """
    metrics = bundle.card.get("metrics", {})
    ratios = _ratios(metrics.get("cross_validation") or metrics.get("held_out", ()))
    if len(ratios) < FEWEST_CASES:
        return None
    tail = (1 - SHARE) / 2
    low, high = (float(np.quantile(ratios, q)) for q in (tail, 1 - tail))
    return VolumeRange(round(infection_ml * low, 3), round(infection_ml * high, 3), len(ratios))


def _ratios(held_out: object) -> list[float]:
    """Reference over prediction of every case that has both."""
    if not isinstance(held_out, Sequence):
        return []
    pairs = [(one.get("reference_ml"), one.get("predicted_ml")) for one in held_out if isinstance(one, dict)]
    return [
        float(reference) / float(predicted)
        for reference, predicted in pairs
        if isinstance(reference, int | float) and isinstance(predicted, int | float) and reference > 0 and predicted > 0
    ]
