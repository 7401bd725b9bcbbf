"""NRRD and MetaImage give what NIfTI gives."""

import numpy as np
import pytest
import SimpleITK
from phantom import PHANTOM_SPACING_MM, phantom_hu, spl_affine

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.itk_files import read_itk
from covidseg_runtime.process_memory import peak_memory_mib
from covidseg_runtime.volume import Volume, to_orientation


def phantom_image():
    """The phantom, (Z, Y, X) as SimpleITK counts, feet to head, front to back, right to left."""
    image = SimpleITK.GetImageFromArray(phantom_hu())
    z, y, x = PHANTOM_SPACING_MM
    image.SetSpacing((x, y, z))
    image.SetOrigin((10.0, -20.0, 30.0))
    return image


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd"])
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


NRRD = (
    "NRRD0004\ntype: {kind}\ndimension: 3\nsizes: {sizes}\nencoding: raw\nendian: little\n"
    "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n{more}\n"
)
MHD = "ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_SHORT\nElementDataFile = {file}\n"


def test_a_promise_that_the_file_cannot_hold_reserves_nothing(tmp_path):
    (tmp_path / "vast.nrrd").write_text(NRRD.format(kind="double", sizes="1200 1200 1000", more=""))
    before = peak_memory_mib()
    with pytest.raises(VolumeError, match="promises 11,520,000,000 bytes of voxels in a file of"):
        read_itk(tmp_path / "vast.nrrd")
    assert peak_memory_mib() - before < 100


@pytest.mark.parametrize("file", ["../other.raw", "/etc/passwd", "LIST", "slice%03d.raw 1 8 1", "none.raw", ".."])
def test_voxels_lie_beside_their_header(tmp_path, file):
    (tmp_path / "other.raw").write_bytes(b"\x18\xfc" * 512)
    folder = tmp_path / "below"
    folder.mkdir()
    (folder / "scan.mhd").write_text(MHD.format(file=file))
    (folder / "scan.nhdr").write_text(NRRD.format(kind="short", sizes="8 8 8", more=f"data file: {file}\n"))
    for name in ("scan.mhd", "scan.nhdr"):
        with pytest.raises(VolumeError, match="does not name one file of voxels beside it"):
            read_itk(folder / name)


def test_values_and_places_that_are_no_numbers_are_refused(tmp_path):
    image = SimpleITK.GetImageFromArray(np.full((8, 8, 8), np.nan, np.float32))
    SimpleITK.WriteImage(image, str(tmp_path / "nan.mha"))
    with pytest.raises(VolumeError, match="not finite"):
        read_itk(tmp_path / "nan.mha")
    image = phantom_image()
    image.SetSpacing((1.0, 1.0, 400.0))
    SimpleITK.WriteImage(image, str(tmp_path / "long.mha"))
    with pytest.raises(VolumeError, match="up to 20 mm"):
        read_itk(tmp_path / "long.mha")
    with pytest.raises(VolumeError, match="cannot be read"):
        read_itk(tmp_path / "none.mha")
