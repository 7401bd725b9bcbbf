"""From Hounsfield units to the numbers a network sees."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import SettingsError


@dataclass(frozen=True)
class HounsfieldScaling:
    """Window and scaling of the CT values, fixed at training time and stored in the bundle.

    Attributes:
        lower_hu: Values below are set to this.
        upper_hu: Values above are set to this.
        mean_hu: Subtracted after clipping.
        sd_hu: Divided by after the subtraction.
    """

    lower_hu: float
    upper_hu: float
    mean_hu: float
    sd_hu: float

    def __post_init__(self) -> None:
        """Refuse an empty window and a scale of zero."""
        if not self.lower_hu < self.upper_hu:
            raise SettingsError(f"lower_hu {self.lower_hu} must be below upper_hu {self.upper_hu}.")
        if not self.sd_hu > 0:
            raise SettingsError(f"sd_hu is {self.sd_hu}; a positive number is expected.")


def clip_and_scale_hounsfield(hu: NDArray[Any], scaling: HounsfieldScaling) -> NDArray[np.float32]:
    """Clip to the window, subtract the mean, divide by the standard deviation.

    ``(clip(hu, lower, upper) - mean) / sd``, as in nnU-Net's CT normalisation.

    Args:
        hu: HU of any shape and any real type; not changed.
        scaling: The window and scale.

    Returns:
        New float32 array of the same shape.
    """
    clipped = np.clip(hu, scaling.lower_hu, scaling.upper_hu).astype(np.float32, copy=False)
    scaled: NDArray[np.float32] = (clipped - np.float32(scaling.mean_hu)) * np.float32(1.0 / scaling.sd_hu)
    return scaled
