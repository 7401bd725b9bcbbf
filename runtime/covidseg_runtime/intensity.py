"""From Hounsfield units to the numbers a network sees, and from grey levels of a window back to Hounsfield units."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import SettingsError

# HU of the darkest and of the brightest grey level.
Window = tuple[float, float]

BRIGHTEST = 255
# No scanner gives HU beyond these, so that no window for people to look at ends there.
_LOWEST_HU, _HIGHEST_HU = -3000, 5000


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


def judge_window(window_hu: Window) -> None:
    """Refuse what is no window of a CT.

    Args:
        window_hu: HU of grey level 0 and of grey level 255.

    Raises:
        SettingsError: If the first is not below the second, or one is beyond -3000 to 5000 HU or not finite.
    """
    low, high = window_hu
    if not _LOWEST_HU <= low < high <= _HIGHEST_HU:
        raise SettingsError(
            f"{low:g} to {high:g} HU is no window: LOW below HIGH, both from {_LOWEST_HU} to {_HIGHEST_HU} HU, "
            "are expected."
        )


def grey_levels_to_hounsfield(levels: NDArray[Any], window_hu: Window) -> NDArray[np.int16]:
    """Undo the scaling of a window to grey levels, as far as that goes: what lay outside the window is lost.

    ``low + level / 255 * (high - low)``, rounded.

    Args:
        levels: Grey levels from 0 to 255, of any shape and any real type; not changed.
        window_hu: HU of grey level 0 and of grey level 255; see `judge_window`.

    Returns:
        New array of the same shape, in HU.

    Example:
        >>> grey_levels_to_hounsfield(np.array([0, 51, 255]), (-1250, 250)).tolist()
        [-1250, -950, 250]
    """
    low, high = window_hu
    hu = levels.astype(np.float32)
    hu *= np.float32((high - low) / BRIGHTEST)
    hu += np.float32(low)
    return np.rint(hu, out=hu).astype(np.int16)
