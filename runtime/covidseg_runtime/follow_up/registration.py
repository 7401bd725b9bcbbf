"""Bringing a prior onto the current scan, by the lungs of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

METHOD = "affine on the lungs"


@dataclass(frozen=True, eq=False)
class Registration:
    """Where each point of the current scan lies in the prior.

    Attributes:
        current_to_prior: (4, 4), RAS+ mm of the current scan to RAS+ mm of the prior.
        lung_dice: Dice of the lungs (infection included) of both, after registration, within both fields of view.
        translation_mm: How far the middle of the current lungs lies from its place in the prior, (x, y, z).
    """

    current_to_prior: NDArray[np.float64]
    lung_dice: float
    translation_mm: tuple[float, float, float]

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "method": METHOD,
            "lung_dice": round(self.lung_dice, 3),
            "translation_mm": [round(mm, 1) for mm in self.translation_mm],
            "current_to_prior": np.round(self.current_to_prior, 6).tolist(),
        }
