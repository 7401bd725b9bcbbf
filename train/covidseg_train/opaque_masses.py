"""Opaque masses put into the lungs of a training patch, so that the lung is found where no air is left in it.

Few CTs at hand hold a tumour or a dense consolidation whose lung somebody drew. A mass here is an ellipsoid with an
uneven surface, cut off where the lung ends, as dense as soft tissue: simulated, and made anew for every patch. It
teaches where the lung is and nothing about infection: its voxels are IN_LUNG, see losses.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool3d

from covidseg_train.losses import IN_LUNG

RADII_MM = (10.0, 45.0)  # the two LUNG1 tumours of 142 and 303 mL are as large as balls of 32 and 42 mm
HU = (0.0, 80.0)  # from fluid to tissue with contrast medium
TEXTURE_HU = 15.0
UNEVENNESS = 0.35  # of the radius
KNOTS = 6  # of the unevenness and of the texture, along each axis
# Around the drawn lung lies a dark rim, half lung, half wall: left as it is, it would betray where the lung ended.
RIM_VOXELS = 2


@dataclass(frozen=True)
class OpaqueMass:
    """One mass.

    Attributes:
        place: Which voxel of the lungs is its centre, as a share of their number, 0 to below 1.
        radii_mm: Along (z, y, x).
        hu: Mean density.
        seed: Of surface and texture.
    """

    place: float
    radii_mm: tuple[float, float, float]
    hu: float
    seed: int


def draw_opaque_mass(rng: np.random.Generator) -> OpaqueMass:
    """Draw one; small masses are as frequent as large ones, by the logarithm of the radius."""
    place, radius = float(rng.random()), float(np.exp(rng.uniform(*np.log(RADII_MM))))
    z, y, x = (radius * float(rng.uniform(0.7, 1.3)) for _ in range(3))
    return OpaqueMass(place, (z, y, x), float(rng.uniform(*HU)), int(rng.integers(2**31)))


def put_opaque_mass(
    hu: Tensor, classes: Tensor, mass: OpaqueMass, spacing_mm: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Put a mass into one patch; a patch without lung stays as it is.

    Args:
        hu: (Z, Y, X) int16.
        classes: (Z, Y, X) uint8: 0 background, 1 lung, 2 lesion in the lung; larger values are no class.
        mass: What is put there.
        spacing_mm: (z, y, x).

    Returns:
        HU and classes of the same shapes and types; where the mass is, the class is IN_LUNG.
    """
    lung = (classes == 1) | (classes == 2)  # noqa: PLR2004  (the classes above)
    voxels = lung.flatten().nonzero()[:, 0]
    if not len(voxels):
        return hu, classes
    centre = np.unravel_index(int(voxels[int(mass.place * len(voxels))]), tuple(hu.shape))
    generator = torch.Generator().manual_seed(mass.seed)
    unevenness, texture = (_smooth_noise(generator, hu) for _ in range(2))
    radii = [radius / spacing for radius, spacing in zip(mass.radii_mm, spacing_mm, strict=True)]
    distance = _ellipsoid_distance(hu, [int(one) for one in centre], radii) + UNEVENNESS * unevenness
    # The surface is one voxel wide, and half of it counts.
    share = ((1.0 - distance) * min(radii) + 0.5).clamp(0.0, 1.0)
    opaque = torch.maximum((1.0 - share) * hu + share * (mass.hu + TEXTURE_HU * texture), hu.float())
    rim = max_pool3d(lung[None].float(), 2 * RIM_VOXELS + 1, stride=1, padding=RIM_VOXELS)[0] > 0
    marked = lung & (share > 0.5)  # noqa: PLR2004
    return torch.where(rim, opaque.round().to(hu.dtype), hu), torch.where(marked, IN_LUNG, classes)


def _ellipsoid_distance(like: Tensor, centre: Sequence[int], radii: Sequence[float]) -> Tensor:
    """Distance (Z, Y, X) from ``centre`` in units of the radii, in voxels: 1 on the ellipsoid."""
    square = torch.zeros((), device=like.device)
    for axis, (length, middle, radius) in enumerate(zip(like.shape, centre, radii, strict=True)):
        along = ((torch.arange(length, device=like.device) - middle) / radius) ** 2
        square = square + along.reshape([-1 if other == axis else 1 for other in range(3)])
    return square.sqrt()


def _smooth_noise(generator: torch.Generator, like: Tensor) -> Tensor:
    """(Z, Y, X) float32 with values between −1 and 1, smooth; drawn on the CPU, the same for every device."""
    knots = torch.rand((1, 1, KNOTS, KNOTS, KNOTS), generator=generator).to(like.device) * 2 - 1
    return interpolate(knots, size=list(like.shape), mode="trilinear", align_corners=True)[0, 0]
