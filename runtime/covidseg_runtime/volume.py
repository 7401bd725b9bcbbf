"""One CT volume: voxels with their place in the patient.

Axis order and units are stated here once:

- ``Volume.voxels`` has shape (X, Y, Z) in the order of the NIfTI file's i, j, k axes; values are
  Hounsfield units (HU) for a CT and class numbers for a label map.
- ``Volume.affine`` maps voxel indices (i, j, k, 1) to millimetres in RAS+ (right, anterior,
  superior are the positive directions), as in the NIfTI standard.
- An *orientation* is a word of three letters, one per array axis: the direction of the patient in which
  the index grows. ``"LPS"`` means that i grows towards the left, j towards posterior, k towards superior.
- The networks see ``"SPL"``: arrays of shape (Z, Y, X) whose first axis runs from the feet to the head.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError

MODEL_ORIENTATION = "SPL"


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and the affine that places them in the patient.

    Attributes:
        voxels: Array of shape (X, Y, Z): HU of a CT, or class numbers of a label map.
        affine: Array of shape (4, 4), float64, voxel indices to RAS+ millimetres.
        window_hu: Of a CT that was given as grey levels of a window: its lowest and highest HU. Voxels are HU as far as
            they could be told; what lay outside is lost. None where voxels are true HU, or labels.

    Raises:
        VolumeError: If the voxels are not three-dimensional or the affine is not finite or singular.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    window_hu: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse what has no place in three dimensions."""
        if self.voxels.ndim != 3:
            raise VolumeError(
                f"The voxels have shape {self.voxels.shape}; a volume with three axes (X, Y, Z) is expected."
            )
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise VolumeError(
                f"The affine {self.affine.tolist()} is not a finite 4×4 matrix; "
                "write the scan again with a valid orientation."
            )
        if min(self.spacing_mm) <= 0 or abs(np.linalg.det(self.affine[:3, :3] / self.spacing_mm)) < 1e-3:
            raise VolumeError(
                f"The affine {self.affine.tolist()} is singular: two voxel axes point the same way or have no "
                "length; write the scan again with a valid orientation."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along (X, Y, Z)."""
        x, y, z = self.voxels.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels in mm along the three array axes."""
        # Rounded to a nanometre: flipping or swapping axes must not change a spacing by a last bit.
        x, y, z = np.round(np.linalg.norm(self.affine[:3, :3], axis=0), 6)
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str:
        """Patient direction in which each array axis grows, e.g. ``"LPS"`` (the closest, if oblique)."""
        return "".join(aff2axcodes(self.affine))


def reorient_array(array: NDArray[Any], source_orientation: str, target_orientation: str) -> NDArray[Any]:
    """Swap and flip axes from one orientation to another.

    Args:
        array: Array with three axes in ``source_orientation``.
        source_orientation: Three letters such as ``"LPS"``.
        target_orientation: Three letters such as ``"SPL"``.

    Returns:
        A view on ``array``; no voxel is copied or interpolated.
    """
    change = _axis_changes(source_orientation, target_orientation)
    # change[i] = (target axis of source axis i, direction)
    flips = tuple(slice(None, None, int(direction)) for direction in change[:, 1])
    return array[flips].transpose(np.argsort(change[:, 0]))


def to_orientation(volume: Volume, orientation: str) -> Volume:
    """Return the same volume with its axes swapped and flipped; voxels are a view, the affine follows."""
    change = ornt_transform(io_orientation(volume.affine), axcodes2ornt(orientation))
    affine = volume.affine @ inv_ornt_aff(change, volume.shape)
    return Volume(reorient_array(volume.voxels, volume.orientation, orientation), affine, volume.window_hu)


def _axis_changes(source_orientation: str, target_orientation: str) -> NDArray[np.int64]:
    change = ornt_transform(axcodes2ornt(source_orientation), axcodes2ornt(target_orientation))
    return np.asarray(change, dtype=np.int64)


def corner_distance_mm(first: Volume, second: Volume) -> float:
    """The largest distance in the patient of the same corner voxel in two volumes of one shape."""
    last = np.array(first.shape, dtype=np.float64) - 1
    corners = np.array([[*(last * corner), 1.0] for corner in np.ndindex(2, 2, 2)])
    apart = corners @ (first.affine - second.affine).T
    return float(np.linalg.norm(apart[:, :3], axis=1).max())
