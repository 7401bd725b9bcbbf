"""Simulated infection: ground glass, consolidation and crazy paving put into real lungs that have none.

Everything made here is simulated and says so in its name. It serves as a pre-training source, as an augmentation, and
as a test with known truth. The precedent is Yao et al., Label-free segmentation of COVID-19 lesions in lung CT,
IEEE TMI 2021, https://doi.org/10.1109/TMI.2021.3066161.

A lesion is a blob around a centre, flattened along the pleura, whose border is frayed by noise of several octaves. In
it a share of the air is replaced by soft tissue: what is soft tissue already, such as a vessel, stays as it is, and
the host's own noise is added back where mixing would have smoothed it away.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path

import numpy as np
from isal import igzip
from nibabel import Nifti1Image
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from covidseg_runtime.errors import SettingsError, VolumeError
from covidseg_runtime.resampling import GridPair, to_model_grid
from covidseg_runtime.volume import MODEL_ORIENTATION, Volume, to_orientation
from covidseg_runtime.volume_files import read_volume, write_bytes_atomic, write_label_map
from covidseg_train.datasets.dataset import CaseFiles
from covidseg_train.datasets.reading import read_lesion
from covidseg_train.lung_labels import label_lungs

EXISTING_INFECTION = 3  # its label, as label_lungs gives it
SOFT_TISSUE_HU = 60.0
LUMEN_HU = -900.0
VESSEL_ABOVE_HU = -500.0
SMALLEST_ML = 0.2
LUNG_LABELS_MM = 2.0  # lungs are found on a grid no finer than this
HALVED_BELOW_MM = 1.0

_FAINTEST = 0.02  # a border weaker than this is none
_COARSE_MM = 3.0
# Size in mm and weight of the octaves of noise.
_FRAYING = ((44.0, 1.0), (22.0, 0.8), (11.0, 0.6), (5.5, 0.45), (3.0, 0.3))
_MOTTLING = ((30.0, 0.7), (12.0, 0.7), (6.0, 1.0), (3.0, 0.8))

Spacing = tuple[float, float, float]
Range = tuple[float, float]
Field = NDArray[np.float32]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]


class LesionKind(Enum):
    """What a simulated lesion looks like."""

    GROUND_GLASS = "ground glass"
    CONSOLIDATION = "consolidation"
    CRAZY_PAVING = "crazy paving"


@dataclass(frozen=True)
class SimulationSettings:
    """What is drawn; every range is (lowest, highest).

    The volumes span the median of serial CTs (30.9 mL falling to 0.6 mL, doi 10.3389/fpubh.2022.915615) and the 4 to
    7 % of the lungs of another series, whose mean early lesion had -462 ± 99 HU (doi 10.1007/s42058-020-00034-2).
    -300 HU parts ground glass from consolidation (doi 10.1186/s12879-021-06556-z).
    What has no source here is the author's choice.

    Attributes:
        lesion_count: Lesions of a case, drawn evenly on a logarithmic scale.
        total_ml: Volume of all lesions of a case, likewise; at most 40 % of the lungs, less where lesions meet.
        largest_ml: Volume no single lesion exceeds; what would is left out.
        kind_weights: Relative frequency of ground glass, consolidation, crazy paving.
        ground_glass_hu: Mean of a lesion's ground glass.
        mottling_hu: SD of its unevenness.
        consolidation_hu: Mean of a lesion's consolidation.
        consolidated_share: Share of a consolidation's volume that is consolidated; the rim is ground glass.
        septa_hu: By how much the septa of crazy paving are denser than the ground glass between them.
        septa_spacing_mm: Their distance.
        bronchus_radius_mm: Radius of an air bronchogram where it enters.
        border_mm: SD of the softness of a ground-glass border.
        flattening: By how much faster a lesion ends towards the inside than along the pleura.
        peripheral_mm: Depth below the pleura over which the density of lesions falls to 1/e.
        basal: Logarithm of the ratio of lesion density between the lungs' lowest and highest slice.
        posterior: The same between their most posterior and most anterior voxel.
        bilateral_probability: Of both lungs being involved.
    """

    lesion_count: tuple[int, int] = (1, 16)
    total_ml: Range = (8.0, 600.0)
    largest_ml: float = 150.0
    kind_weights: tuple[float, float, float] = (0.5, 0.3, 0.2)
    ground_glass_hu: Range = (-620.0, -400.0)
    mottling_hu: Range = (30.0, 120.0)
    consolidation_hu: Range = (-100.0, 40.0)
    consolidated_share: Range = (0.25, 0.8)
    septa_hu: Range = (150.0, 250.0)
    septa_spacing_mm: Range = (8.0, 12.0)
    bronchus_radius_mm: Range = (1.0, 2.0)
    border_mm: Range = (0.8, 2.5)
    flattening: Range = (1.0, 2.5)
    peripheral_mm: float = 10.0
    basal: float = 2.0
    posterior: float = 3.0
    bilateral_probability: float = 0.8

    def __post_init__(self) -> None:
        """Refuse empty ranges and weights that cannot be drawn from."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) == 2 and value[0] > value[1]:
                raise SettingsError(f"{field.name} is {value}; the lowest value comes first.")
        if self.lesion_count[0] < 1 or self.total_ml[0] <= 0:
            raise SettingsError(
                f"lesion_count is {self.lesion_count} and total_ml {self.total_ml}; at least one lesion of more than "
                "0 mL is expected."
            )
        if min(self.kind_weights) < 0 or sum(self.kind_weights) <= 0:
            raise SettingsError(f"kind_weights is {self.kind_weights}; none below 0 and one above 0 are expected.")


@dataclass(frozen=True, eq=False)
class SimulatedInfection:
    """A scan with simulated infection.

    Attributes:
        hu: (Z, Y, X) int16.
        lesion: (Z, Y, X), where at least half of the simulated change is, united with the host's own infection.
    """

    hu: NDArray[np.int16]
    lesion: Mask


@dataclass(frozen=True, eq=False)
class _Host:
    """The box of the lungs and what is known of it; arrays are (Z, Y, X)."""

    hu: Field
    sides: NDArray[np.uint8]  # 1 left lung, 2 right lung, 0 all else
    depth_mm: Field  # below the pleura
    parenchyma_hu: Field  # without vessels and airways
    noise_hu: Field  # of the parenchyma, about 0
    fraying: Field  # SD 1
    mottling: Field  # SD 1
    spacing_mm: Spacing

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000.0


@dataclass(frozen=True)
class _Lesion:
    """One lesion to be put in."""

    kind: LesionKind
    centre: tuple[int, int, int]
    volume_ml: float


@dataclass(frozen=True, eq=False)
class _Canvas:
    """What all lesions together do to the host's box: share of air replaced, visibility 0 to 1, bronchial lumen."""

    fill: Field
    opacity: Field
    lumen: Field


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
    canvas = _Canvas(*(np.zeros(host.hu.shape, np.float32) for _ in range(3)))
    for lesion in _draw_lesions(host, rng, settings):
        _put_lesion(canvas, host, lesion, rng, settings)
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
) -> _Host:
    values = hu.astype(np.float32)
    sides = np.where(labels == EXISTING_INFECTION, np.uint8(0), labels)
    parenchyma = _parenchyma(values, sides, spacing_mm)
    return _Host(
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
    grids = GridPair.for_spacing(hu.shape, spacing_mm, _at_least(spacing_mm, _COARSE_MM))
    sigma = [4.0 / mm for mm in grids.model_spacing_mm]
    total = ndimage.gaussian_filter(to_model_grid(hu * aerated, grids), sigma, truncate=3.0)
    weight = ndimage.gaussian_filter(to_model_grid(aerated, grids), sigma, truncate=3.0)
    usual = float(hu[aerated > 0].mean()) if aerated.any() else -850.0
    # Where little aerated tissue is near, the whole lung's mean takes over.
    return _spread((total + 0.02 * usual) / (weight + 0.02), hu.shape)


def _depth(lungs: Mask, spacing_mm: Spacing) -> Field:
    """Distance to the pleura in mm, measured on a coarse grid."""
    grids = GridPair.for_spacing(lungs.shape, spacing_mm, _at_least(spacing_mm, _COARSE_MM))
    coarse = np.pad(to_model_grid(lungs, grids) >= 0.5, 1)
    depth = ndimage.distance_transform_edt(coarse, sampling=grids.model_spacing_mm)[1:-1, 1:-1, 1:-1]
    return _spread(depth.astype(np.float32), lungs.shape)


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
        step = _at_least(spacing_mm, size_mm / 4)
        coarse = GridPair.for_spacing(shape, spacing_mm, step).model_shape
        octave = ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), 1.0)
        # The SD that a Gaussian blur by one voxel leaves of white noise in three dimensions.
        total += weight / 0.15 * _spread(octave, shape)
    total /= np.float32(np.sqrt(sum(weight**2 for _, weight in octaves)))
    return total


def _at_least(spacing_mm: Spacing, step_mm: float) -> Spacing:
    z, y, x = (max(mm, step_mm) for mm in spacing_mm)
    return z, y, x


def _spread(values: Field, shape: tuple[int, int, int]) -> Field:
    """Interpolate a field to another shape over the same box."""
    z, y, x = values.shape
    any_mm = (1.0, 1.0, 1.0)
    return to_model_grid(values, GridPair((z, y, x), any_mm, shape, any_mm))


def _draw_lesions(host: _Host, rng: np.random.Generator, settings: SimulationSettings) -> list[_Lesion]:
    count = round(_draw_logarithmic(settings.lesion_count, rng))
    most_ml = 0.4 * np.count_nonzero(host.sides) * host.voxel_ml
    total_ml = min(_draw_logarithmic(settings.total_ml, rng), most_ml)
    shares = rng.dirichlet(np.full(count, 1.2))
    kinds = rng.choice(len(LesionKind), count, p=np.array(settings.kind_weights) / sum(settings.kind_weights))
    voxels = np.flatnonzero(host.sides)
    chances = np.cumsum(_placement(host, rng, settings).ravel()[voxels], dtype=np.float64)
    drawn = voxels[np.searchsorted(chances, rng.random(count) * chances[-1])]
    centres = np.stack(np.unravel_index(drawn, host.sides.shape), axis=1).tolist()
    return [
        _Lesion(list(LesionKind)[kind], (z, y, x), float(np.clip(share * total_ml, SMALLEST_ML, settings.largest_ml)))
        for kind, (z, y, x), share in zip(kinds, centres, shares, strict=True)
    ]


def _draw_logarithmic(limits: Range, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]))))


def _placement(host: _Host, rng: np.random.Generator, settings: SimulationSettings) -> Field:
    """How likely a lesion's centre is at each voxel: peripheral, basal, posterior, lateral; one lung or both."""
    z, y, x = (np.linspace(0.0, 1.0, n, dtype=np.float32) for n in host.sides.shape)
    height, back, lateral = z[:, None, None], y[None, :, None], np.abs(2 * x - 1)[None, None, :]
    chance = np.exp(-host.depth_mm / settings.peripheral_mm - settings.basal * height + settings.posterior * back)
    chance = chance * (0.1 + lateral**2)
    if rng.random() >= settings.bilateral_probability:
        spared = 1 + int(rng.random() < 0.5)
        if (host.sides == 3 - spared).any():
            chance = chance * (host.sides != spared)
    return np.where(host.sides > 0, chance, 0.0)


def _put_lesion(
    canvas: _Canvas, host: _Host, lesion: _Lesion, rng: np.random.Generator, settings: SimulationSettings
) -> None:
    """Add one lesion to the canvas; where two meet, the stronger counts."""
    box = _reach(host, lesion)
    side = host.sides[box] == host.sides[lesion.centre]
    score = _score(host, lesion, box, rng.uniform(*settings.flattening))
    score[~side] = -np.inf
    sigma_mm = min(rng.uniform(*settings.border_mm), 0.4 * _radius_mm(lesion))
    opacity = _soft(_largest(score, lesion.volume_ml / host.voxel_ml), side, sigma_mm, host.spacing_mm)
    target = rng.uniform(*settings.ground_glass_hu) + rng.uniform(*settings.mottling_hu) * host.mottling[box]
    target = np.clip(target, -720.0, -320.0)
    match lesion.kind:
        case LesionKind.CRAZY_PAVING:
            target += rng.uniform(*settings.septa_hu) * _septa(host, box, opacity > 0, rng, settings)
        case LesionKind.CONSOLIDATION:
            share = rng.uniform(*settings.consolidated_share)
            core = _soft(_largest(score, share * lesion.volume_ml / host.voxel_ml), side, 1.0, host.spacing_mm)
            dense = rng.uniform(*settings.consolidation_hu) + 15.0 * host.mottling[box]
            target += core * (np.minimum(dense, SOFT_TISSUE_HU) - target)
            lumen = core * _bronchi(host, box, core >= 0.5, rng, settings)
            np.maximum(canvas.lumen[box], lumen, out=canvas.lumen[box])
    parenchyma = host.parenchyma_hu[box]
    fill = opacity * np.clip((target - parenchyma) / (SOFT_TISSUE_HU - parenchyma), 0.0, 1.0)
    np.maximum(canvas.fill[box], fill, out=canvas.fill[box])
    np.maximum(canvas.opacity[box], opacity, out=canvas.opacity[box])


def _reach(host: _Host, lesion: _Lesion) -> Box:
    """The box that a lesion cannot leave."""
    reach_mm = 2.5 * _radius_mm(lesion) + 12.0
    z, y, x = (
        slice(max(0, middle - round(reach_mm / mm)), middle + round(reach_mm / mm) + 1)
        for middle, mm in zip(lesion.centre, host.spacing_mm, strict=True)
    )
    return z, y, x


def _radius_mm(lesion: _Lesion) -> float:
    """Of a ball of the lesion's volume."""
    return float((lesion.volume_ml * 1000.0 * 0.75 / np.pi) ** (1 / 3))


def _score(host: _Host, lesion: _Lesion, box: Box, flattening: float) -> Field:
    """Falls from the lesion's centre outwards, faster across the pleura than along it, with noise."""
    axes = [
        (np.arange(part.start, part.start + n, dtype=np.float32) - middle) * np.float32(mm)
        for part, n, middle, mm in zip(box, host.hu[box].shape, lesion.centre, host.spacing_mm, strict=True)
    ]
    across = flattening * (host.depth_mm[box] - host.depth_mm[lesion.centre])
    squares = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2
    score: Field = 0.5 * host.fraying[box] - np.sqrt(squares + across**2) / np.float32(_radius_mm(lesion))
    return score


def _largest(score: Field, voxels: float) -> Mask:
    """The highest voxels by number; at most 80 % of those that are allowed."""
    allowed = score[np.isfinite(score)]
    count = max(1, min(round(voxels), int(0.8 * allowed.size)))
    largest: Mask = score >= np.partition(allowed, -count)[-count]
    return largest


def _soft(mask: Mask, side: Mask, sigma_mm: float, spacing_mm: Spacing) -> Field:
    """A mask with a soft border, except at the pleura, where it ends with the lung."""
    sigma = [sigma_mm / mm for mm in spacing_mm]
    inside = ndimage.gaussian_filter(mask.astype(np.float32), sigma, truncate=3.0)
    lung = ndimage.gaussian_filter(side.astype(np.float32), sigma, truncate=3.0)
    soft = np.where(side, inside / np.maximum(lung, 1e-3), 0.0).astype(np.float32)
    # Threads too thin to reach one half are no part of the truth, so they must not be seen either.
    beyond = ndimage.distance_transform_edt(soft < 0.5, sampling=spacing_mm) > 3 * sigma_mm
    soft[beyond | (soft < _FAINTEST)] = 0.0
    return np.minimum(soft, 1.0)


def _septa(host: _Host, box: Box, where: Mask, rng: np.random.Generator, settings: SimulationSettings) -> Field:
    """Walls between cells around scattered points, 0 to 1: thickened septa between lobules."""
    distance_mm = rng.uniform(*settings.septa_spacing_mm)
    # Bent by the noise at hand: straight walls of even cells would look like a honeycomb.
    bend = np.stack([np.roll(host.mottling[box], shift, axis=1)[where] for shift in (0, 7, 14)], axis=1)
    places = np.argwhere(where) * host.spacing_mm + 0.12 * distance_mm * bend
    low, high = places.min(axis=0) - 2 * distance_mm, places.max(axis=0) + 2 * distance_mm
    lattice = np.stack(np.meshgrid(*map(np.arange, low, high, [distance_mm] * 3), indexing="ij"), axis=-1)
    points = lattice.reshape(-1, 3) + rng.uniform(-0.5, 0.5, (lattice.size // 3, 3)) * distance_mm
    nearest, _ = KDTree(points).query(places, k=2)
    # Half the difference of the distances is about the distance to the wall.
    wall_mm = (nearest[:, 1] - nearest[:, 0]) / 2
    thickness_mm = max(0.7, 0.4 * float(np.mean(host.spacing_mm)))
    septa = np.zeros(where.shape, np.float32)
    strength = np.clip(0.6 + 0.5 * host.fraying[box][where], 0.0, 1.0)
    septa[where] = strength * np.exp(-0.5 * (wall_mm / thickness_mm) ** 2)
    return septa


def _bronchi(host: _Host, box: Box, core: Mask, rng: np.random.Generator, settings: SimulationSettings) -> Field:
    """Share of each voxel that is the lumen of a branching tube running from the hilum's side to the pleura."""
    lumen = np.zeros(core.shape, np.float32)
    places = np.argwhere(core) * host.spacing_mm
    volume_ml = len(places) * host.voxel_ml
    if volume_ml < 1.0:
        return lumen
    start = np.array([part.start for part in box])
    hilum = (np.array(host.sides.shape) / 2 - start) * host.spacing_mm
    trees = [
        _grow_tree(places[rng.integers(len(places))], hilum, rng.uniform(*settings.bronchus_radius_mm), rng)
        for _ in range(min(5, 1 + int(volume_ml / 15.0)))
    ]
    tubes = np.concatenate(trees)
    apart, index = KDTree(tubes[:, :3]).query(places)
    voxel_mm = float(np.mean(host.spacing_mm))
    lumen[core] = np.clip((tubes[index, 3] - apart) / voxel_mm + 0.5, 0.0, 1.0)
    return lumen


def _grow_tree(
    through: NDArray[np.float64], hilum: NDArray[np.float64], radius_mm: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Points (N, 4) of a random walk that forks: z, y, x and radius, all in mm."""
    outwards = through - hilum
    outwards /= max(float(np.linalg.norm(outwards)), 1.0)
    points = []
    open_ends = [(through - 12.0 * outwards, outwards, radius_mm)]
    while open_ends:
        at, direction, radius = open_ends.pop()
        for _ in range(int(rng.integers(12, 24))):
            direction = direction + rng.normal(0.0, 0.15, 3)
            direction /= np.linalg.norm(direction)
            at = at + direction
            points.append((*at, radius))
        if radius > 0.8:
            side = rng.normal(0.0, 1.0, 3)
            side -= side @ direction * direction
            side /= np.linalg.norm(side)
            open_ends += [(at, direction + sign * 0.7 * side, 0.75 * radius) for sign in (-1, 1)]
    return np.array(points)


def _mix(host: _Host, canvas: _Canvas, hu: NDArray[np.int16]) -> NDArray[np.int16]:
    """Replace air by soft tissue; vessels and the airways that the host shows stay."""
    fill = canvas.fill * (1.0 - _airways(host))
    mixed = host.hu + fill * np.maximum(SOFT_TISSUE_HU - host.hu, 0.0) + fill * host.noise_hu
    lumen = np.where(host.hu < VESSEL_ABOVE_HU, canvas.lumen, 0.0)
    mixed += lumen * np.minimum(LUMEN_HU - mixed, 0.0)
    return np.where(canvas.fill > 0, np.rint(mixed), hu).astype(np.int16)


def _airways(host: _Host) -> Field:
    """How surely a voxel is the lumen of an airway, 0 to 1: air, and clearly darker than the tissue around it."""
    smooth = ndimage.gaussian_filter(host.hu, 0.7, truncate=3.0)
    darker = np.clip((host.parenchyma_hu - smooth - 50.0) / 40.0, 0.0, 1.0)
    return np.where(smooth < -930.0, darker, 0.0).astype(np.float32)


def write_simulated_cases(hosts: Sequence[Path], folder: Path, *, per_host: int, seed: int) -> None:
    """Simulate cases and write each as ``simulated_<host>_<number>_ct.nii.gz`` and ``..._infection.nii.gz``.

    A host whose in-plane spacing is below 1.0 mm is halved in the plane first (mean of 2×2 voxels), to save time and
    disk; any other keeps its grid. A case follows from the seed, its host's name and its number alone.

    Args:
        hosts: CTs of chests, ``<host>_ct.nii.gz`` or ``<host>.nii.gz``. Infection marked beside one in
            ``<host>_infection.nii.gz`` stays as it is and is marked in the simulated case as well.
        folder: Existing folder; cases of the same name are replaced.
        per_host: Cases of each host.
        seed: Another seed gives other cases.

    Raises:
        SettingsError: If two hosts have one name.
        VolumeError: If a host is not a CT of a chest.
        OutputError: If a case cannot be written.
    """
    names = [re.sub(r"(_ct)?\.nii(\.gz)?$", "", host.name) for host in hosts]
    if len(set(names)) < len(names):
        raise SettingsError(f"Two hosts have one name among {', '.join(names)}; rename one, as cases are named by it.")
    for name, path in zip(names, hosts, strict=True):
        scan = read_volume(path)
        host = _halve_in_plane(to_orientation(scan, MODEL_ORIENTATION))
        hu = np.clip(np.rint(host.voxels), -32768, 32767).astype(np.int16)
        lungs = _find_lungs(hu, _own_infection(path, name, scan, host.shape), host.spacing_mm)
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
        for number in range(1, per_host + 1):
            rng = np.random.default_rng([seed, digest, number])
            case = simulate_infection(hu, lungs, host.spacing_mm, rng, SimulationSettings())
            stem = folder / f"simulated_{name}_{number}"
            _write_case(stem, case, host.affine, scan.orientation)


def _halve_in_plane(host: Volume) -> Volume:
    """The mean of 2×2 voxels of each slice where they are small; a last odd row is left out."""
    if min(host.spacing_mm[1:]) >= HALVED_BELOW_MM:
        return host
    z, y, x = host.shape[0], host.shape[1] // 2, host.shape[2] // 2
    halved = host.voxels[:, : 2 * y, : 2 * x].reshape(z, y, 2, x, 2).mean(axis=(2, 4), dtype=np.float32)
    to_host = np.array([[1.0, 0, 0, 0], [0, 2.0, 0, 0.5], [0, 0, 2.0, 0.5], [0, 0, 0, 1.0]])
    return Volume(halved, host.affine @ to_host)


def _own_infection(path: Path, name: str, scan: Volume, shape: tuple[int, int, int]) -> Mask:
    """Infection that is marked beside a host, on its (halved) grid; none where there is no such file."""
    ending = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    marked = path.with_name(f"{name}_infection{ending}")
    if not marked.is_file():
        return np.zeros(shape, np.bool_)
    mask = to_orientation(read_lesion(CaseFiles(name, name, path, marked), scan), MODEL_ORIENTATION)
    own: Mask = (mask if mask.shape == shape else _halve_in_plane(mask)).voxels >= 0.5
    return own


def _find_lungs(hu: NDArray[np.int16], infection: Mask, spacing_mm: Spacing) -> NDArray[np.uint8]:
    """Left and right lung (1, 2), found on a grid of about 2 mm, and the host's own infection (3)."""
    grids = GridPair.for_spacing(hu.shape, spacing_mm, _at_least(spacing_mm, LUNG_LABELS_MM))
    coarse_hu = np.rint(to_model_grid(hu, grids)).astype(np.int16)
    coarse = label_lungs(coarse_hu, to_model_grid(infection, grids) >= 0.5, grids.model_spacing_mm)
    lungs = np.zeros(hu.shape, np.uint8)
    # The coarse grid cuts off a rim of part lung, part wall: it would be a dark line between lesion and pleura.
    rim = (hu > LUMEN_HU) & (hu < -250)
    for side in (1, 2):
        found = _spread((coarse == side).astype(np.float32), hu.shape) >= 0.5
        lungs[ndimage.binary_dilation(found, iterations=2, mask=found | (rim & (lungs == 0)))] = side
    lungs[infection] = EXISTING_INFECTION
    return lungs


def _write_case(stem: Path, case: SimulatedInfection, affine: NDArray[np.float64], orientation: str) -> None:
    ct = to_orientation(Volume(case.hu, affine), orientation)
    truth = to_orientation(Volume(case.lesion.astype(np.uint8), affine), orientation)
    # The CT last: a case that has a CT is whole.
    write_label_map(stem.with_name(f"{stem.name}_infection.nii.gz"), truth.voxels, ct)
    image = Nifti1Image(np.ascontiguousarray(ct.voxels), ct.affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"covidseg simulated infection, research use only"
    write_bytes_atomic(
        stem.with_name(f"{stem.name}_ct.nii.gz"), igzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
    )
