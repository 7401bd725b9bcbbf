"""Judging a NIfTI header before a voxel is read.

nibabel reads what a header says and mends some of it in silence (a spacing of 0 becomes 1, an intercept of NaN
becomes 0), and allocates what the dimensions promise. Here the raw fields are judged first; what passes is safe to
allocate and has a place in the patient.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.volume_extent import THICKEST_MM, judge_lengths, judge_size

NIFTI1_BYTES = 348
NIFTI2_BYTES = 540
_FARTHEST_MM = 1e6
_READABLE = ("u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8")


@dataclass(frozen=True, eq=False)
class NiftiLayout:
    """What is needed to read the voxels and place them.

    Attributes:
        shape: (X, Y, Z).
        dtype: Type on disk, byte order included.
        data_offset: Bytes before the first voxel.
        slope: Multiplies the stored values.
        intercept: Added after the slope.
        affine: (4, 4), voxel indices to RAS+ mm.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    data_offset: int
    slope: float
    intercept: float
    affine: NDArray[np.float64]

    @property
    def data_bytes(self) -> int:
        """Bytes of all voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


def judge_header(raw: bytes, name: str) -> NiftiLayout:
    """Read and judge a NIfTI-1 or NIfTI-2 header.

    Args:
        raw: The first bytes of the (inflated) file, 540 if it has as many.
        name: Name of the file for messages.

    Raises:
        VolumeError: With one sentence on what is wrong.
    """
    header = _parse(raw, name)
    shape = _judge_shape(header, name)
    dtype = _judge_type(header, name)
    _judge_spacing(header, name)
    slope, intercept = _judge_scaling(header, name)
    offset = float(header["vox_offset"])
    if not (offset.is_integer() and len(header.binaryblock) <= offset < 2**24):
        raise VolumeError(f"{name}: the header says that voxels begin at byte {offset}; the file is damaged.")
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused in a sentence
        affine = _judge_affine(header, name)
    _judge_extent(affine, shape, name)
    return NiftiLayout(shape, dtype, int(offset), slope, intercept, affine)


def _parse(raw: bytes, name: str) -> Nifti1Header:
    for kind, size, magic_at in ((Nifti1Header, NIFTI1_BYTES, 344), (Nifti2Header, NIFTI2_BYTES, 4)):
        if len(raw) >= size and raw[magic_at : magic_at + 3] == (b"n+1" if size == NIFTI1_BYTES else b"n+2"):
            try:
                header = kind(raw[:size], check=False)
            except HeaderDataError as error:
                raise VolumeError(f"{name}: the NIfTI header is damaged ({error}).") from error
            if int(header["sizeof_hdr"]) == size:
                return header
    raise VolumeError(f"{name} is not a single-file NIfTI image; give a CT as .nii or .nii.gz.")


def _judge_shape(header: Nifti1Header, name: str) -> tuple[int, int, int]:
    dims = [int(n) for n in header["dim"]]
    axes, lengths = dims[0], dims[1:]
    # A fourth axis of length 1 is how some tools write a plain volume.
    if not (axes == 3 or (3 < axes <= 7 and all(n == 1 for n in lengths[3:axes]))):
        given = "×".join(str(n) for n in lengths[: max(0, min(axes, 7))])
        raise VolumeError(f"{name} has {axes} dimensions ({given}); one 3D volume is expected.")
    x, y, z = lengths[:3]
    judge_size((x, y, z), name)
    if min(x, y, z) < 2:
        raise VolumeError(f"{name} has {x}×{y}×{z} voxels: a single slice; one 3D volume is expected.")
    return x, y, z


def _judge_type(header: Nifti1Header, name: str) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise VolumeError(f"{name}: unknown NIfTI data type {int(header['datatype'])}.") from error
    if dtype.str[1:] not in _READABLE:
        raise VolumeError(
            f"{name} stores {dtype} (NIfTI data type {int(header['datatype'])}); whole numbers of up to 32 bits or "
            "floats are expected, not colours or complex values."
        )
    if int(header["bitpix"]) != dtype.itemsize * 8:
        raise VolumeError(f"{name}: {int(header['bitpix'])} bits do not fit type {dtype}; the header is damaged.")
    return dtype


def _judge_spacing(header: Nifti1Header, name: str) -> None:
    spacing = [float(mm) for mm in header["pixdim"][1:4]]
    if not all(math.isfinite(mm) and 0 < mm <= THICKEST_MM for mm in spacing):
        raise VolumeError(
            f"{name} has a voxel spacing of {spacing} mm; finite numbers above 0 and up to {THICKEST_MM:.0f} mm "
            "are expected. Write the scan again from its source."
        )


def _judge_scaling(header: Nifti1Header, name: str) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise VolumeError(f"{name} scales its values by {slope} and {intercept}; finite numbers are expected.")
    # By the standard a slope of 0 means: values are as stored.
    return (1.0, 0.0) if slope == 0 else (slope, intercept)


def _judge_affine(header: Nifti1Header, name: str) -> NDArray[np.float64]:
    if int(header["sform_code"]) > 0:
        affine = np.asarray(header.get_sform(), np.float64)
    elif int(header["qform_code"]) > 0:
        try:
            affine = np.asarray(header.get_qform(), np.float64)
        except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
            raise VolumeError(f"{name}: the orientation (qform) is damaged ({error}).") from error
    else:
        raise VolumeError(
            f"{name} has neither sform nor qform, so left and right are unknown; "
            "convert the scan again with a tool that keeps the orientation."
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or lengths.min() <= 0 or lengths.max() > THICKEST_MM:
        raise VolumeError(
            f"{name} has the affine {np.round(affine, 3).tolist()}; finite numbers and a spacing above 0 and up to "
            f"{THICKEST_MM:.0f} mm are expected."
        )
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise VolumeError(f"{name} has a singular affine: two of its axes point the same way.")
    return affine


def _judge_extent(affine: NDArray[np.float64], shape: tuple[int, int, int], name: str) -> None:
    judge_lengths(np.linalg.norm(affine[:3, :3], axis=0) * shape, name)
    if np.abs(affine[:3, 3]).max() > _FARTHEST_MM:
        raise VolumeError(f"{name} lies {np.abs(affine[:3, 3]).max():g} mm from its origin; its affine is damaged.")
