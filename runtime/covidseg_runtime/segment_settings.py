"""What a caller may set: how much work a scan is worth, and what becomes of small lesions, long scans and windows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from covidseg_runtime.errors import SettingsError
from covidseg_runtime.intensity import Window, judge_window
from covidseg_runtime.spooling import Spool


@dataclass(frozen=True)
class Quality:
    """How much work a scan is worth.

    Attributes:
        step: Distance of neighbouring tiles as a share of the tile; None is the bundle's.
        mirror_axes: Axes (0 z, 1 y, 2 x) mirrored for one more prediction each: left and right, as in training.
    """

    step: float | None = None
    mirror_axes: tuple[int, ...] = ()


QUALITIES: Mapping[str, Quality] = MappingProxyType(
    {"fast": Quality(step=1.0), "balanced": Quality(), "best": Quality(step=0.5, mirror_axes=(2,))}
)


@dataclass(frozen=True)
class SegmentSettings:
    """What a caller may set.

    Attributes:
        min_lesion_ml: Infections smaller than this become lung again; 0 keeps all.
        quality: "fast", "balanced" or "best"; what each costs in DSC is measured in the documentation.
        spool: Where the voxels of a long scan (given as a file) and its labels lie, in files that have no name, 3 bytes
            a voxel, so that memory does not grow with the number of slices.
        keep_probability: Also give the infection's probability; it takes a byte a voxel, and time.
        window_hu: Scans given as files hold grey levels from 0 to 255 of this window; None where they hold HU.
    """

    min_lesion_ml: float = 0.05
    quality: str = "balanced"
    spool: Spool | None = None
    keep_probability: bool = False
    window_hu: Window | None = None

    def describe(self) -> dict[str, str | float | list[float] | None]:
        """What results depend on, as plain values."""
        window_hu = None if self.window_hu is None else list(self.window_hu)
        return {"min_lesion_ml": self.min_lesion_ml, "quality": self.quality, "window_hu": window_hu}

    def __post_init__(self) -> None:
        """Refuse volumes that are no volume, and windows that are no window."""
        if not 0 <= self.min_lesion_ml < math.inf:
            raise SettingsError(f"min_lesion_ml is {self.min_lesion_ml}: expected 0 or a positive number")
        if self.quality not in QUALITIES:
            raise SettingsError(f"quality {self.quality!r} is unknown: expected one of {', '.join(QUALITIES)}")
        if self.window_hu is not None:
            judge_window(self.window_hu)
