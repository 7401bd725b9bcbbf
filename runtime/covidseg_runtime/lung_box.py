"""The part of a scan that has to be segmented: a box around the lungs, or the body, or everything."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.spooling import every_nth

Shape = tuple[int, int, int]
Mask = NDArray[np.bool_]

AIR_BELOW_HU = -400
BODY_ABOVE_HU = -500
MARGIN_MM = 24.0
SAMPLING_MM = 5.0
SMALLEST_LUNGS_ML, LARGEST_LUNGS_ML = 500.0, 12_000.0
# Lungs span most of the chest; less means that one is too dense to be seen as air.
NARROWEST_SHARE_OF_BODY = 0.55


@dataclass(frozen=True)
class Box:
    """A box of voxels, axes (Z, Y, X).

    Attributes:
        start: First voxel.
        stop: One past the last voxel.
        rule: What the box was made from: the lungs' air, the body, or nothing (the whole scan).
    """

    start: Shape
    stop: Shape
    rule: Literal["lungs", "body", "whole"]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box in a (Z, Y, X) array."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def shape(self) -> Shape:
        """Voxels of the box."""
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x


def find_lung_box(voxels: NDArray[Any], spacing_mm: tuple[float, float, float], *, margin_mm: float = MARGIN_MM) -> Box:
    """Find the box that holds the lungs.

    Works on every n-th voxel (about 5 mm). Air enclosed by the body, in pieces of a lung's size, gives the lungs'
    box. Where that is implausible (under 0.5 L, over 12 L, or much narrower than the body, as when one lung is
    consolidated), the body's box is taken; where there is no body, the whole scan.

    Args:
        voxels: (Z, Y, X) in HU, orientation SPL.
        spacing_mm: (z, y, x).
        margin_mm: Added on every side, for what is too dense to be seen as air.
    """
    z_step, y_step, x_step = (max(1, round(SAMPLING_MM / mm)) for mm in spacing_mm)
    steps = (z_step, y_step, x_step)
    coarse = every_nth(voxels, steps)
    coarse_ml = float(np.prod([mm * step for mm, step in zip(spacing_mm, steps, strict=True)])) / 1000.0
    margins = [margin_mm / mm for mm in spacing_mm]
    body = _largest_component(coarse > BODY_ABOVE_HU)
    lungs = _lung_sized(enclosed_air(coarse), coarse_ml)
    if _plausible(lungs, body, coarse_ml):
        return _box_around(lungs, voxels.shape, steps, margins, "lungs")
    if body.any():
        return _box_around(body, voxels.shape, steps, [0.0, 0.0, 0.0], "body")
    z, y, x = voxels.shape
    return Box((0, 0, 0), (z, y, x), "whole")


def enclosed_air(hu: NDArray[Any]) -> Mask:
    """Voxels of (Z, Y, X) below -400 HU that, within their slice, are not joined to the scan's side borders."""
    from scipy import ndimage

    air = hu < AIR_BELOW_HU
    for plane in air:
        components, _ = ndimage.label(plane)
        edge = np.concatenate((components[0], components[-1], components[:, 0], components[:, -1]))
        plane[np.isin(components, np.unique(edge[edge > 0]))] = False
    return air


def _largest_component(mask: Mask) -> Mask:
    from scipy import ndimage

    components, count = ndimage.label(mask)
    if not count:
        return mask
    largest: Mask = components == int(np.argmax(np.bincount(components.ravel())[1:])) + 1
    return largest


def _lung_sized(air: Mask, voxel_ml: float) -> Mask:
    """Pieces of at least 100 mL and an eighth of the largest: lungs, not bowel gas or the oesophagus."""
    from scipy import ndimage

    components, count = ndimage.label(air)
    if not count:
        return air
    volumes_ml = np.bincount(components.ravel()) * voxel_ml
    volumes_ml[0] = 0.0
    kept: Mask = (volumes_ml >= max(100.0, volumes_ml.max() / 8))[components]
    return kept


def _plausible(lungs: Mask, body: Mask, voxel_ml: float) -> bool:
    if not SMALLEST_LUNGS_ML <= lungs.sum() * voxel_ml <= LARGEST_LUNGS_ML:
        return False
    width = np.ptp(np.flatnonzero(lungs.any(axis=(0, 1))))
    body_width = np.ptp(np.flatnonzero(body.any(axis=(0, 1)))) if body.any() else width
    return bool(width >= NARROWEST_SHARE_OF_BODY * body_width)


def _box_around(
    mask: Mask,
    shape: tuple[int, ...],
    steps: tuple[int, ...],
    margins: list[float],
    rule: Literal["lungs", "body"],
) -> Box:
    """Bounding box of a coarse mask in full voxels: one coarse voxel and the margin wider on every side."""
    starts, stops = [], []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        wider = steps[axis] + int(np.ceil(margins[axis]))
        starts.append(max(0, int(used[0]) * steps[axis] - wider))
        stops.append(min(shape[axis], (int(used[-1]) + 1) * steps[axis] + wider))
    return Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]), rule)
