"""No CT is longer than its table or wider than its bore, whatever the format of its file.

What is larger is refused before its voxels are read: a small file with thick voxels would fill any memory once it is
brought to the network's spacing.
"""

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError

LARGEST_AXIS = 4096
LARGEST_VOLUME = 1024 * 1024 * 2000
THICKEST_MM = 20.0
LONGEST_MM, WIDEST_MM = 2500.0, 1200.0


def judge_extent(affine: NDArray[np.float64], shape: tuple[int, int, int], name: str) -> None:
    """Refuse a volume that no scanner makes.

    Args:
        affine: (4, 4), voxel indices to millimetres.
        shape: (X, Y, Z).
        name: What the message calls it.

    Raises:
        VolumeError: If an axis has too many voxels, they are too thick, or all of them are too long.
    """
    judge_size(shape, name)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and 0 < spacing.min() <= spacing.max() <= THICKEST_MM):
        raise VolumeError(
            f"{name} has a voxel spacing of {[float(f'{mm:.4g}') for mm in spacing]} mm; finite numbers above 0 and up "
            f"to {THICKEST_MM:.0f} mm are expected."
        )
    judge_lengths(spacing * shape, name)


def judge_size(shape: tuple[int, int, int], name: str) -> None:
    """Refuse more voxels than a CT has.

    Raises:
        VolumeError: If an axis of (X, Y, Z) is empty or too long, or all have too many voxels.
    """
    x, y, z = shape
    if min(shape) < 1 or max(shape) > LARGEST_AXIS or x * y * z > LARGEST_VOLUME:
        raise VolumeError(
            f"{name} says it has {x}×{y}×{z} voxels; 1 to {LARGEST_AXIS} an axis and {LARGEST_VOLUME:,} in all "
            "are accepted."
        )


def judge_lengths(extents_mm: NDArray[np.float64], name: str) -> None:
    """Refuse what fits no scanner.

    Args:
        extents_mm: (3,) length along each axis.
        name: What the message calls it.

    Raises:
        VolumeError: If it is longer than a table, or two axes are wider than a bore.
    """
    if extents_mm.max() > LONGEST_MM or sorted(extents_mm)[1] > WIDEST_MM:
        raise VolumeError(
            f"{name} is {np.round(extents_mm).astype(int).tolist()} mm long along its axes; up to {LONGEST_MM:.0f} mm "
            f"along one and {WIDEST_MM:.0f} mm along the others are expected. Is its voxel spacing right?"
        )
