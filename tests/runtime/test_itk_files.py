"""NRRD and MetaImage give what NIfTI gives."""

import numpy as np
import pytest
import SimpleITK
from phantom import PHANTOM_SPACING_MM, phantom_hu, spl_affine

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.itk_files import read_itk
from covidseg_runtime.volume import Volume, to_orientation


def phantom_image():
    """The phantom, (Z, Y, X) as SimpleITK counts, feet to head, front to back, right to left."""
    image = SimpleITK.GetImageFromArray(phantom_hu())
    z, y, x = PHANTOM_SPACING_MM
    image.SetSpacing((x, y, z))
    image.SetOrigin((10.0, -20.0, 30.0))
    return image


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha", "scan.mhd"])
def test_a_file_is_read_with_its_place(tmp_path, name):
    SimpleITK.WriteImage(phantom_image(), str(tmp_path / name))
    volume = read_itk(tmp_path / name)
    assert volume.orientation == "LPS"
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels, phantom_hu().T)
    assert volume.affine[:3, 3].tolist() == [-10.0, 20.0, 30.0]  # LPS to RAS
    turned = to_orientation(volume, "SPL")
    assert np.array_equal(
        turned.voxels, to_orientation(Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM)), "SPL").voxels
    )


def test_what_is_no_scan_is_refused(tmp_path):
    (tmp_path / "broken.nrrd").write_bytes(b"NRRD0004\ntype: short\n")
    with pytest.raises(VolumeError, match="no whole file of its kind"):
        read_itk(tmp_path / "broken.nrrd")
    SimpleITK.WriteImage(SimpleITK.Image(8, 8, SimpleITK.sitkInt16), str(tmp_path / "flat.mha"))
    with pytest.raises(VolumeError, match="2 axes"):
        read_itk(tmp_path / "flat.mha")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.full((8, 8, 8), 100, np.int16)), str(tmp_path / "mask.mha"))
    with pytest.raises(VolumeError, match="label map"):
        read_itk(tmp_path / "mask.mha")
