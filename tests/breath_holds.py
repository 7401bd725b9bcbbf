"""A scan in another breath-hold, simulated: diaphragm and front wall moved, all a little bent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from covidseg_runtime.follow_up.labelled_scan import LabelledScan
from covidseg_runtime.follow_up.placement import apply_affine
from covidseg_runtime.volume import Volume

Field = NDArray[np.float32]

NOISE_HU = 30.0
_BEND_MM = 40.0


@dataclass(frozen=True, eq=False)
class BreathHold:
    """A simulated scan, and where its points were before.

    Attributes:
        scan: (Z, Y, X), on the grid of the scan it was made of.
        displacement_mm: (3, Z, Y, X), along the array's axes, to where each voxel was.
    """

    scan: LabelledScan
    displacement_mm: Field

    @classmethod
    def of(cls, scan: LabelledScan, diaphragm_mm: float, seed: int = 0) -> BreathHold:
        """Bring the diaphragm lower (above 0) or higher (below 0); noise of its own is added."""
        turned, labels = scan.turned, scan.turned_labels.voxels
        rng = np.random.default_rng(seed)
        displacement_mm = _displacement(turned, labels > 0, diaphragm_mm, rng)
        spacing = np.array(turned.spacing_mm, np.float32)[:, None, None, None]
        source = np.indices(turned.shape, np.float32)
        source += displacement_mm / spacing
        hu = ndimage.map_coordinates(turned.voxels.astype(np.float32), source, order=1, mode="nearest")
        hu += rng.normal(0.0, NOISE_HU, turned.shape).astype(np.float32)
        mapped = ndimage.map_coordinates(labels, source, order=0, mode="nearest")
        name = f"simulated breath-hold of {scan.name}"
        return cls(LabelledScan(Volume(np.rint(hu).astype(np.int16), turned.affine), mapped, name), displacement_mm)

    def lung_points(self, every: int = 997) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Some points of the lungs, (n, 3) in RAS+ mm, and where they were before."""
        turned = self.scan.turned_labels
        indices = np.argwhere(turned.voxels > 0)[::every]
        before = indices + self.displacement_mm[:, *indices.T].T / turned.spacing_mm
        return apply_affine(turned.affine, indices), apply_affine(turned.affine, before)


def _displacement(turned: Volume, lungs: NDArray[np.bool_], diaphragm_mm: float, rng: np.random.Generator) -> Field:
    """Strongest at the base and behind, none at the top; the front wall moves by a quarter of it."""
    heights, depths = np.flatnonzero(lungs.any(axis=(1, 2))), np.flatnonzero(lungs.any(axis=(0, 2)))
    z, y = (np.arange(n, dtype=np.float32) for n in turned.shape[:2])
    low = np.clip((heights[-1] - z) / np.ptp(heights), 0.0, 1.2)[:, None, None]
    back = np.clip((y - depths[0]) / np.ptp(depths), 0.0, 1.0)[None, :, None]
    front = np.clip(1.0 - 2.0 * back, -0.3, 1.0)
    displacement_mm = np.stack([_bend(turned, rng) for _ in range(3)])
    displacement_mm[0] += diaphragm_mm * low**1.5 * (0.7 + 0.5 * back)
    displacement_mm[1] -= 0.25 * diaphragm_mm * low * front
    return displacement_mm


def _bend(turned: Volume, rng: np.random.Generator) -> Field:
    """Smooth noise with an SD of 1 mm."""
    coarse = [max(2, int(n * mm / _BEND_MM)) for n, mm in zip(turned.shape, turned.spacing_mm, strict=True)]
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), 1.0)
    zoom = [n / few for n, few in zip(turned.shape, coarse, strict=True)]
    bent: Field = ndimage.zoom(noise / noise.std(), zoom, order=1)
    return bent
