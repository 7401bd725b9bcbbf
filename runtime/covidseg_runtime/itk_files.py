"""NRRD and MetaImage by SimpleITK (extra ``itk``).

ITK reserves what a header promises, and reads whatever file one points to. So a header is judged first: its voxels
must fit in the files that hold them, and these lie beside it.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_extent import judge_extent
from covidseg_runtime.volume_files import judge_hounsfield

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LARGEST_TEXT = 1 << 16
# How many bytes of voxels may unfold from one: as of NIfTI.
_LARGEST_UNFOLDING = 200
_SMALL_BYTES = 1 << 26
_DATA_FILE = re.compile(
    rb"^[ \t]*(?:ElementDataFile[ \t]*[=:]|data ?file:)[ \t]*([^\r\n]*?)[ \t]*\r?$", re.MULTILINE | re.IGNORECASE
)


def read_itk(path: Path) -> Volume:
    """Read a CT from ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.

    Returns:
        The volume in HU, (X, Y, Z); int16 where the file stores whole numbers of that range, else float32.

    Raises:
        VolumeError: If it is not a 3D CT in HU, or its voxels lie elsewhere than in it or in one file beside it.
    """
    reader = SimpleITK.ImageFileReader()
    # Named, as ITK would try its readers of other formats as well.
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        held = _bytes_held(path)
        reader.ReadImageInformation()
        _judge_header(reader, held, path.name)
        image = reader.Execute()
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror or error}.") from error
    except RuntimeError as error:
        raise VolumeError(f"{path.name} is no whole file of its kind; copy or export it again.") from error
    voxels = SimpleITK.GetArrayViewFromImage(image)
    if voxels.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in voxels):
        raise VolumeError(f"{path.name} holds values that are not finite (NaN or infinity); a CT in HU is expected.")
    fits = voxels.dtype.kind in "iu" and voxels.min() >= -(1 << 15) and voxels.max() < 1 << 15
    with np.errstate(over="ignore"):  # infinity is beyond any HU
        volume = Volume(voxels.astype(np.int16 if fits else np.float32).T, _affine(reader))
    judge_hounsfield(volume, path.name)
    return volume


def _bytes_held(path: Path) -> int:
    """Bytes of the file that holds the voxels: this one, or the one beside it that it names."""
    with path.open("rb") as file:
        text = file.read(_LARGEST_TEXT).partition(b"\n\n")[0]
    # In an .mha, voxels follow; what looks like a name among them is none.
    found = _DATA_FILE.search(text)
    if found is None or found[1] == b"LOCAL":
        return path.stat().st_size
    name = found[1].decode("utf-8", "replace")
    if not re.fullmatch(r"[^/\\%\s:][^/\\%:\t]*", name) or name == ".." or not (path.parent / name).is_file():
        raise VolumeError(
            f"{path.name} does not name one file of voxels beside it; put both in one folder, or export it as one file."
        )
    return (path.parent / name).resolve().stat().st_size


def _judge_header(reader: SimpleITK.ImageFileReader, held: int, name: str) -> None:
    size, components, kind = reader.GetSize(), reader.GetNumberOfComponents(), reader.GetPixelID()
    if len(size) != 3 or components != 1:
        raise VolumeError(
            f"{name} has {len(size)} axes and {components} values a voxel; a CT has three axes and one value."
        )
    judge_extent(_affine(reader), tuple(size), name)
    # The type's own size: an image of one voxel tells.
    promised = int(np.prod(size, dtype=np.int64)) * SimpleITK.Image(1, 1, 1, kind).GetSizeOfPixelComponent()
    if promised > max(held * _LARGEST_UNFOLDING, _SMALL_BYTES):
        raise VolumeError(f"{name} promises {promised:,} bytes of voxels in a file of {held:,} bytes; copy it again.")


def _affine(reader: SimpleITK.ImageFileReader) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(4, 4): voxel indices to RAS+ millimetres; ITK's own are LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
    affine[:3, 3] = reader.GetOrigin()
    return np.asarray(_LPS_TO_RAS @ affine)
