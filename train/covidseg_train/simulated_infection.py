"""Simulated infection: ground glass, consolidation and crazy paving put into real lungs that have none.

Everything made here is simulated and says so in its name. It serves as a pre-training source, as an augmentation, and
as a test with known truth. The precedent is Yao et al., Label-free segmentation of COVID-19 lesions in lung CT,
IEEE TMI 2021, https://doi.org/10.1109/TMI.2021.3066161.

In a lesion a share of the air is replaced by soft tissue: what is soft tissue already, such as a vessel, stays as it
is, and the host's own noise is added back where mixing would have smoothed it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.resampling import GridPair, to_model_grid
from covidseg_train.simulated_lesions import (
    SOFT_TISSUE_HU,
    Box,
    Canvas,
    Field,
    Host,
    Mask,
    SimulationSettings,
    Spacing,
    draw_lesions,
    put_lesion,
)

EXISTING_INFECTION = 3  # its label, as label_lungs gives it
LUMEN_HU = -900.0
_VESSEL_ABOVE_HU = -500.0
_COARSE_MM = 3.0
# Size in mm and weight of the octaves of noise.
_FRAYING = ((44.0, 1.0), (22.0, 0.8), (11.0, 0.6), (5.5, 0.45), (3.0, 0.3))
_MOTTLING = ((30.0, 0.7), (12.0, 0.7), (6.0, 1.0), (3.0, 0.8))


@dataclass(frozen=True, eq=False)
class SimulatedInfection:
    """A scan with simulated infection.

    Attributes:
        hu: (Z, Y, X) int16.
        lesion: (Z, Y, X), where at least half of the simulated change is, united with the host's own infection.
    """

    hu: NDArray[np.int16]
    lesion: Mask


def simulate_infection(
    hu: NDArray[np.int16],
    lungs: NDArray[np.uint8],
    spacing_mm: Spacing,
    rng: np.random.Generator,
    settings: SimulationSettings,
) -> SimulatedInfection:
    """Put simulated infection into a scan.

    Args:
        hu: (Z, Y, X) in orientation SPL, Hounsfield units; not changed.
        lungs: (Z, Y, X), labels as ``label_lungs`` gives them: 1 left lung, 2 right lung, 3 the host's own infection,
            whose voxels keep their values.
        spacing_mm: (z, y, x).
        rng: All that is drawn is drawn from it.
        settings: What to draw.

    Raises:
        VolumeError: If there are no lungs, or their shape is not that of the scan.
    """
    if hu.shape != lungs.shape:
        raise VolumeError(f"The scan has shape {hu.shape} and its lungs {lungs.shape}; one grid is expected.")
    box = _box_of((lungs == 1) | (lungs == 2))
    host = _study_host(hu[box], lungs[box], spacing_mm, rng)
    canvas = Canvas(*(np.zeros(host.hu.shape, np.float32) for _ in range(3)))
    for lesion in draw_lesions(host, rng, settings):
        put_lesion(canvas, host, lesion, rng, settings)
    simulated, truth = hu.copy(), lungs == EXISTING_INFECTION
    simulated[box] = _mix(host, canvas, hu[box])
    truth[box] |= canvas.opacity >= 0.5
    return SimulatedInfection(simulated, truth)


def _box_of(mask: Mask) -> Box:
    if not mask.any():
        raise VolumeError("The labels hold no lungs (1 left, 2 right); infection is simulated inside lungs only.")
    z, y, x = ndimage.find_objects(mask.astype(np.uint8))[0]
    return z, y, x


def _study_host(
    hu: NDArray[np.int16], labels: NDArray[np.uint8], spacing_mm: Spacing, rng: np.random.Generator
) -> Host:
    values = hu.astype(np.float32)
    sides = np.where(labels == EXISTING_INFECTION, np.uint8(0), labels)
    parenchyma = _parenchyma(values, sides, spacing_mm)
    return Host(
        hu=values,
        sides=sides,
        depth_mm=_depth(labels > 0, spacing_mm),
        parenchyma_hu=parenchyma,
        noise_hu=_noise(values, parenchyma, sides > 0),
        fraying=_fractal(hu.shape, spacing_mm, _FRAYING, rng),
        mottling=_fractal(hu.shape, spacing_mm, _MOTTLING, rng),
        spacing_mm=spacing_mm,
    )


def _parenchyma(hu: Field, sides: NDArray[np.uint8], spacing_mm: Spacing) -> Field:
    """Mean of the aerated tissue around each voxel, about 8 mm wide; airways and vessels count nothing."""
    aerated = ((sides > 0) & (hu < -650) & (hu > -970)).astype(np.float32)
    grids = pair_with_coarse_grid(hu.shape, spacing_mm, _COARSE_MM)
    sigma = [4.0 / mm for mm in grids.model_spacing_mm]
    total = ndimage.gaussian_filter(to_model_grid(hu * aerated, grids), sigma, truncate=3.0)
    weight = ndimage.gaussian_filter(to_model_grid(aerated, grids), sigma, truncate=3.0)
    usual = float(hu[aerated > 0].mean()) if aerated.any() else -850.0
    # Where little aerated tissue is near, the whole lung's mean takes over.
    return resample_to_shape((total + 0.02 * usual) / (weight + 0.02), hu.shape)


def _depth(lungs: Mask, spacing_mm: Spacing) -> Field:
    """Distance to the pleura in mm, measured on a coarse grid."""
    grids = pair_with_coarse_grid(lungs.shape, spacing_mm, _COARSE_MM)
    coarse = np.pad(to_model_grid(lungs, grids) >= 0.5, 1)
    depth = ndimage.distance_transform_edt(coarse, sampling=grids.model_spacing_mm)[1:-1, 1:-1, 1:-1]
    return resample_to_shape(depth.astype(np.float32), lungs.shape)


def _noise(hu: Field, parenchyma: Field, lungs: Mask) -> Field:
    """What a blur by about a voxel takes from the parenchyma; nothing at vessels and borders, which are no noise."""
    noise = hu - ndimage.gaussian_filter(hu, 1.0, truncate=3.0)
    noise[~lungs | (np.abs(hu - parenchyma) > 200)] = 0.0
    limit = 3.0 * float(noise[lungs].std())
    clipped: Field = np.clip(noise, -limit, limit)
    return clipped


def _fractal(
    shape: tuple[int, int, int], spacing_mm: Spacing, octaves: Sequence[tuple[float, float]], rng: np.random.Generator
) -> Field:
    """Smooth noise of several octaves, mean about 0, SD about 1."""
    total = np.zeros(shape, np.float32)
    for size_mm, weight in octaves:
        coarse = pair_with_coarse_grid(shape, spacing_mm, size_mm / 4).model_shape
        octave = ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), 1.0)
        # The SD that a Gaussian blur by one voxel leaves of white noise in three dimensions.
        total += weight / 0.15 * resample_to_shape(octave, shape)
    total /= np.float32(np.sqrt(sum(weight**2 for _, weight in octaves)))
    return total


def _mix(host: Host, canvas: Canvas, hu: NDArray[np.int16]) -> NDArray[np.int16]:
    """Replace air by soft tissue; vessels and the airways that the host shows stay."""
    fill = canvas.fill * (1.0 - _airways(host))
    mixed = host.hu + fill * np.maximum(SOFT_TISSUE_HU - host.hu, 0.0) + fill * host.noise_hu
    lumen = np.where(host.hu < _VESSEL_ABOVE_HU, canvas.lumen, 0.0)
    mixed += lumen * np.minimum(LUMEN_HU - mixed, 0.0)
    return np.where(canvas.fill > 0, np.rint(mixed), hu).astype(np.int16)


def _airways(host: Host) -> Field:
    """How surely a voxel is the lumen of an airway, 0 to 1: air, and clearly darker than the tissue around it."""
    smooth = ndimage.gaussian_filter(host.hu, 0.7, truncate=3.0)
    darker = np.clip((host.parenchyma_hu - smooth - 50.0) / 40.0, 0.0, 1.0)
    return np.where(smooth < -930.0, darker, 0.0).astype(np.float32)


def pair_with_coarse_grid(shape: tuple[int, int, int], spacing_mm: Spacing, coarse_mm: float) -> GridPair:
    """A grid (Z, Y, X) with one over the same box that is about ``coarse_mm`` apart along each axis that was finer."""
    z, y, x = (max(mm, coarse_mm) for mm in spacing_mm)
    return GridPair.for_spacing(shape, spacing_mm, (z, y, x))


def resample_to_shape(values: Field, shape: tuple[int, int, int]) -> Field:
    """Interpolate a field to another shape over the same box."""
    z, y, x = values.shape
    any_mm = (1.0, 1.0, 1.0)
    return to_model_grid(values, GridPair((z, y, x), any_mm, shape, any_mm))
