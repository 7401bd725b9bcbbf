"""The lesions of simulated infection: how many, where, of which shape, and what is in them.

A lesion is a blob around a centre, flattened along the pleura, whose border is frayed by noise of several octaves.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from covidseg_runtime.errors import SettingsError

SOFT_TISSUE_HU = 60.0
_SMALLEST_ML = 0.2
_FAINTEST = 0.02  # a border weaker than this is none

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
class Host:
    """The box of the lungs and what is known of it; every array is (Z, Y, X).

    Attributes:
        hu: Hounsfield units.
        sides: 1 left lung, 2 right lung, 0 all else.
        depth_mm: Below the pleura.
        parenchyma_hu: HU of the parenchyma without vessels and airways.
        noise_hu: Noise of the parenchyma, about 0.
        fraying: Noise that frays the border of a lesion, SD 1.
        mottling: Noise that makes its ground glass uneven, SD 1.
        spacing_mm: (z, y, x).
    """

    hu: Field
    sides: NDArray[np.uint8]
    depth_mm: Field
    parenchyma_hu: Field
    noise_hu: Field
    fraying: Field
    mottling: Field
    spacing_mm: Spacing

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL."""
        return float(np.prod(self.spacing_mm)) / 1000.0


@dataclass(frozen=True)
class Lesion:
    """One lesion to be put in.

    Attributes:
        kind: What it looks like.
        centre: Voxel (z, y, x) of the host's box.
        volume_ml: Its volume; less where the lung around it has not enough room.
    """

    kind: LesionKind
    centre: tuple[int, int, int]
    volume_ml: float


@dataclass(frozen=True, eq=False)
class Canvas:
    """What all lesions together do to the host's box; arrays are (Z, Y, X), 0 to 1.

    Attributes:
        fill: Share of air that is replaced by soft tissue.
        opacity: How much of a lesion a voxel is.
        lumen: Share of a voxel that is the lumen of an air bronchogram.
    """

    fill: Field
    opacity: Field
    lumen: Field


def draw_lesions(host: Host, rng: np.random.Generator, settings: SimulationSettings) -> list[Lesion]:
    """Draw how many lesions there are, and kind, place and volume of each."""
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
        Lesion(list(LesionKind)[kind], (z, y, x), float(np.clip(share * total_ml, _SMALLEST_ML, settings.largest_ml)))
        for kind, (z, y, x), share in zip(kinds, centres, shares, strict=True)
    ]


def _draw_logarithmic(limits: Range, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]))))


def _placement(host: Host, rng: np.random.Generator, settings: SimulationSettings) -> Field:
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


def put_lesion(
    canvas: Canvas, host: Host, lesion: Lesion, rng: np.random.Generator, settings: SimulationSettings
) -> None:
    """Add one lesion to the canvas; where two meet, the stronger counts."""
    box = _reach(host, lesion)
    side = host.sides[box] == host.sides[lesion.centre]
    score = _score(host, lesion, box, rng.uniform(*settings.flattening))
    score[~side] = -np.inf
    sigma_mm = min(rng.uniform(*settings.border_mm), 0.4 * _radius_mm(lesion))
    opacity = _soften(_highest(score, lesion.volume_ml / host.voxel_ml), side, sigma_mm, host.spacing_mm)
    target = rng.uniform(*settings.ground_glass_hu) + rng.uniform(*settings.mottling_hu) * host.mottling[box]
    target = np.clip(target, -720.0, -320.0)
    match lesion.kind:
        case LesionKind.CRAZY_PAVING:
            target += rng.uniform(*settings.septa_hu) * _septa(host, box, opacity > 0, rng, settings)
        case LesionKind.CONSOLIDATION:
            share = rng.uniform(*settings.consolidated_share)
            core = _soften(_highest(score, share * lesion.volume_ml / host.voxel_ml), side, 1.0, host.spacing_mm)
            dense = rng.uniform(*settings.consolidation_hu) + 15.0 * host.mottling[box]
            target += core * (np.minimum(dense, SOFT_TISSUE_HU) - target)
            lumen = core * _bronchi(host, box, core >= 0.5, rng, settings)
            np.maximum(canvas.lumen[box], lumen, out=canvas.lumen[box])
    parenchyma = host.parenchyma_hu[box]
    fill = opacity * np.clip((target - parenchyma) / (SOFT_TISSUE_HU - parenchyma), 0.0, 1.0)
    np.maximum(canvas.fill[box], fill, out=canvas.fill[box])
    np.maximum(canvas.opacity[box], opacity, out=canvas.opacity[box])


def _reach(host: Host, lesion: Lesion) -> Box:
    """The box that a lesion cannot leave."""
    reach_mm = 2.5 * _radius_mm(lesion) + 12.0
    z, y, x = (
        slice(max(0, middle - round(reach_mm / mm)), middle + round(reach_mm / mm) + 1)
        for middle, mm in zip(lesion.centre, host.spacing_mm, strict=True)
    )
    return z, y, x


def _radius_mm(lesion: Lesion) -> float:
    """Of a ball of the lesion's volume."""
    return float((lesion.volume_ml * 1000.0 * 0.75 / np.pi) ** (1 / 3))


def _score(host: Host, lesion: Lesion, box: Box, flattening: float) -> Field:
    """Falls from the lesion's centre outwards, faster across the pleura than along it, with noise."""
    axes = [
        (np.arange(part.start, part.start + n, dtype=np.float32) - middle) * np.float32(mm)
        for part, n, middle, mm in zip(box, host.hu[box].shape, lesion.centre, host.spacing_mm, strict=True)
    ]
    across = flattening * (host.depth_mm[box] - host.depth_mm[lesion.centre])
    squares = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2
    score: Field = 0.5 * host.fraying[box] - np.sqrt(squares + across**2) / np.float32(_radius_mm(lesion))
    return score


def _highest(score: Field, count: float) -> Mask:
    """The ``count`` highest voxels, at least one; at most 80 % of those that are allowed, which are finite."""
    allowed = score[np.isfinite(score)]
    number = max(1, min(round(count), int(0.8 * allowed.size)))
    highest: Mask = score >= np.partition(allowed, -number)[-number]
    return highest


def _soften(mask: Mask, side: Mask, sigma_mm: float, spacing_mm: Spacing) -> Field:
    """A mask with a soft border, except at the pleura, where it ends with the lung."""
    sigma = [sigma_mm / mm for mm in spacing_mm]
    inside = ndimage.gaussian_filter(mask.astype(np.float32), sigma, truncate=3.0)
    lung = ndimage.gaussian_filter(side.astype(np.float32), sigma, truncate=3.0)
    soft = np.where(side, inside / np.maximum(lung, 1e-3), 0.0).astype(np.float32)
    # Threads too thin to reach one half are no part of the truth, so they must not be seen either.
    beyond = ndimage.distance_transform_edt(soft < 0.5, sampling=spacing_mm) > 3 * sigma_mm
    soft[beyond | (soft < _FAINTEST)] = 0.0
    return np.minimum(soft, 1.0)


def _septa(host: Host, box: Box, where: Mask, rng: np.random.Generator, settings: SimulationSettings) -> Field:
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


def _bronchi(host: Host, box: Box, core: Mask, rng: np.random.Generator, settings: SimulationSettings) -> Field:
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
