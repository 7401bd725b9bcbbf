"""A case out of NIfTI files: image and mask brought together by their affines, values brought to Hounsfield units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.volume import Volume, corner_distance_mm, to_orientation
from covidseg_runtime.volume_files import read_label_map, read_volume
from covidseg_train.datasets.dataset import CaseFiles, CaseVolumes

_SAME_PLACE_VOXELS = 0.5  # how far the corners of two grids may lie apart


def inner_folder(root: Path, name: str) -> Path:
    """The folder that an archive brings along, where ``root`` holds it; else ``root``, which then is that folder."""
    return root / name if (root / name).is_dir() else root


def find_nifti(folder: Path, pattern: str) -> dict[str, Path]:
    """NIfTI files by their names without the ending, in the order of the names; of hidden files (macOS) none.

    Args:
        folder: Where to look; may be missing.
        pattern: Glob pattern below ``folder``, without the ending.
    """
    paths = (path for ending in (".nii", ".nii.gz") for path in folder.glob(pattern + ending))
    named = {path.name.removesuffix(".gz").removesuffix(".nii"): path for path in paths if path.name[0] != "."}
    return dict(sorted(named.items()))


def read_nifti_case(files: CaseFiles) -> CaseVolumes:
    """Read a case whose CT is stored in Hounsfield units.

    The mask may have its axes in another order or direction; it is turned by its affine.

    Raises:
        VolumeError: If a file is unsuitable, or CT and mask do not share one grid in the patient.
    """
    ct = read_volume(files.ct)
    return CaseVolumes(ct, read_lesion(files, ct))


def read_lesion(files: CaseFiles, ct: Volume) -> Volume:
    """Read the mask of a case as 0 and 1 on the grid of ``ct``.

    Raises:
        VolumeError: If it does not share the grid of ``ct`` in the patient.
    """
    mask = to_orientation(read_label_map(files.lesion), ct.orientation)
    _require_one_grid(files, ct, mask)
    return Volume(select_values(mask.voxels, files.lesion_values), ct.affine)


def select_values(voxels: NDArray[np.integer], values: tuple[int, ...]) -> NDArray[np.uint8]:
    """1 where a mask holds one of ``values`` (empty: anything but 0), else 0."""
    return (np.isin(voxels, values) if values else voxels != 0).astype(np.uint8)


def _require_one_grid(files: CaseFiles, ct: Volume, mask: Volume) -> None:
    if ct.shape != mask.shape:
        raise VolumeError(
            f"{files.ct.name} has shape {ct.shape} and {files.lesion.name} {mask.shape}; they do not share one grid."
        )
    apart_mm = corner_distance_mm(ct, mask)
    if apart_mm > _SAME_PLACE_VOXELS * min(ct.spacing_mm):
        raise VolumeError(
            f"{files.ct.name} and {files.lesion.name} lie up to {apart_mm:.1f} mm apart in the patient; "
            "they do not share one grid."
        )
