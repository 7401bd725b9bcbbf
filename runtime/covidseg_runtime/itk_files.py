"""NRRD and MetaImage by SimpleITK (extra ``itk``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import judge_hounsfield

LARGEST_VOXELS = 1 << 31
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: Path) -> Volume:
    """Read a CT from ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.

    Returns:
        The volume in HU, (X, Y, Z); int16 where the file stores whole numbers of that range, else float32.

    Raises:
        VolumeError: If it is not a 3D CT in HU.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) != 3 or reader.GetNumberOfComponents() != 1:
            raise VolumeError(
                f"{path.name} has {len(size)} axes and {reader.GetNumberOfComponents()} values a voxel; "
                "a CT has three axes and one value."
            )
        if int(np.prod(size, dtype=np.float64)) > LARGEST_VOXELS:
            raise VolumeError(f"{path.name} promises {'×'.join(map(str, size))} voxels, more than a CT has.")
        image = reader.Execute()
    except RuntimeError as error:
        raise VolumeError(f"{path.name} is no whole file of its kind; copy or export it again.") from error
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    voxels = SimpleITK.GetArrayFromImage(image)
    fits = voxels.dtype.kind in "iu" and voxels.min() >= -(1 << 15) and voxels.max() < 1 << 15
    volume = Volume(voxels.astype(np.int16 if fits else np.float32).T, _LPS_TO_RAS @ affine)
    judge_hounsfield(volume, path.name)
    return volume
