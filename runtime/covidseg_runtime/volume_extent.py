"""No CT is longer than its table or wider than its bore, whatever the format of its file."""

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.nifti_header import LARGEST_AXIS, LARGEST_VOLUME, LONGEST_MM, THICKEST_MM, WIDEST_MM


def judge_extent(affine: NDArray[np.float64], shape: tuple[int, int, int], name: str) -> None:
    """Refuse a volume that no scanner makes, before its voxels are read: on the network's grid it would fill memory.

    Args:
        affine: (4, 4), voxel indices to millimetres.
        shape: (X, Y, Z).
        name: What the message calls it.

    Raises:
        VolumeError: If an axis has too many voxels, they are too thick, or all of them are too long.
    """
    if min(shape) < 1 or max(shape) > LARGEST_AXIS or int(np.prod(shape, dtype=np.int64)) > LARGEST_VOLUME:
        raise VolumeError(
            f"{name} promises {'×'.join(map(str, shape))} voxels; 1 to {LARGEST_AXIS} an axis and {LARGEST_VOLUME:,} "
            "in all are accepted."
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and 0 < spacing.min() <= spacing.max() <= THICKEST_MM):
        raise VolumeError(
            f"{name} has a voxel spacing of {[float(f'{mm:.4g}') for mm in spacing]} mm; finite numbers above 0 and up "
            f"to {THICKEST_MM:.0f} mm are expected."
        )
    extents = spacing * shape
    if extents.max() > LONGEST_MM or sorted(extents)[1] > WIDEST_MM:
        raise VolumeError(
            f"{name} is {np.round(extents).astype(int).tolist()} mm long along its axes; up to {LONGEST_MM:.0f} mm "
            f"along one and {WIDEST_MM:.0f} mm along the others are expected."
        )
