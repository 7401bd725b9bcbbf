"""A scan and its labels made small enough for a page, and no smaller: what the viewer shows, never what is measured."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.volume import Volume, reorient_array, to_orientation

ORIENTATION = "RAS"
MOST_VOXELS = (256, 256, 200)
# From air to what a soft-tissue window ends with; all above is shown as its end.
LOWEST_HU, HIGHEST_HU = -1024.0, 256.0
# What the page of a scan may weigh is 10 MB: the viewer has 2.3, the picture some 1, and base64 makes 4 bytes of 3.
LARGEST_SCAN_BYTES = 4_700_000
# Grey levels in HU that are tried, finest first, on all the voxels and then on half as many along each axis. The last
# one always fits.
_STEPS_HU = (10.0, 16.0, 20.0, 26.0, 32.0)
_GZIP_WBITS = 31
_LABEL_INTENT = 1002  # NIFTI_INTENT_LABEL

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class ViewerVolumes:
    """Two NIfTI files of one grid.

    Attributes:
        scan: ``.nii.gz``, uint8 grey levels with the slope and intercept that make HU of them.
        labels: ``.nii.gz``, uint8.
        shape: Voxels along (X, Y, Z), in orientation RAS.
        spacing_mm: (x, y, z).
        step_hu: HU from one grey level to the next.
    """

    scan: bytes
    labels: bytes
    shape: Shape
    spacing_mm: tuple[float, float, float]
    step_hu: float


def make_viewer_volumes(volume: Volume, labels: NDArray[np.uint8]) -> ViewerVolumes:
    """Reduce both to one grid that covers exactly what the scan covers, at its place in the patient.

    The scan is averaged over what each new voxel covers; a label is that of the voxel at its centre. Of the grey levels
    that fit into `LARGEST_SCAN_BYTES` the finest are taken.

    Args:
        volume: The scan in HU.
        labels: (X, Y, Z) on the scan's grid.

    Raises:
        VolumeError: If the labels have another shape than the scan.
    """
    if labels.shape != volume.shape:
        raise VolumeError(f"labels have shape {labels.shape}, the scan {volume.shape}")
    candidates = _candidates(to_orientation(volume, ORIENTATION))
    packed, affine, shape, step_hu = next(one for one in candidates if len(one[0]) <= LARGEST_SCAN_BYTES)
    labels_ras = _at_centres(reorient_array(labels, volume.orientation, ORIENTATION), shape)
    spacing_mm = Volume(labels_ras, affine).spacing_mm
    return ViewerVolumes(packed, _nifti(labels_ras, affine, None), shape, spacing_mm, step_hu)


def _candidates(scan: Volume) -> Iterator[tuple[bytes, NDArray[np.float64], Shape, float]]:
    """The scan's file, affine, shape and step in HU, from the finest on; the last one fits, however noisy the scan."""
    full = _smaller(scan.shape, MOST_VOXELS)
    for shape in (full, _smaller(full, tuple(n // 2 for n in MOST_VOXELS))):
        reduced = _averaged(scan.voxels, shape)
        affine = _affine_of(scan, shape)
        for step_hu in _STEPS_HU:
            yield _nifti(_grey_levels(reduced, step_hu), affine, step_hu), affine, shape, step_hu


def _smaller(shape: Shape, most: tuple[int, ...]) -> Shape:
    x, y, z = (min(n, limit) for n, limit in zip(shape, most, strict=True))
    return x, y, z


def _affine_of(scan: Volume, shape: Shape) -> NDArray[np.float64]:
    """The affine of ``shape`` voxels that cover what the scan covers: the corners stay, the centres move."""
    ratio = np.array(scan.shape) / shape
    affine = scan.affine.copy()
    affine[:3, :3] *= ratio
    affine[:3, 3] += scan.affine[:3, :3] @ ((ratio - 1) / 2)
    return affine


def _averaged(voxels: NDArray[Any], shape: Shape) -> NDArray[np.float32]:
    """(X, Y, Z) to ``shape``: each new voxel is the mean of what it covers."""
    along_x, along_y, along_z = (_overlaps(n, m) for n, m in zip(voxels.shape, shape, strict=True))
    averaged = np.empty(shape, np.float32, order="F")
    for z in range(shape[2]):
        shares = along_z[[z], :].tocoo()
        mixed = np.zeros(voxels.shape[:2], np.float32)
        for share, old_z in zip(shares.data, shares.coords[1], strict=True):
            mixed += share * voxels[:, :, old_z]
        averaged[:, :, z] = (along_y @ (along_x @ mixed).T).T
    return averaged


def _overlaps(old: int, new: int) -> Any:  # noqa: ANN401 - a sparse array of SciPy
    """(new, old): the share that each old voxel has in each new one; every row sums to 1."""
    from scipy.sparse import csr_array

    borders = np.union1d(np.arange(old + 1) / old, np.arange(new + 1) / new)
    lengths, middles = np.diff(borders), (borders[:-1] + borders[1:]) / 2
    # Two borders that differ by a last bit enclose nothing.
    rows, columns = (middles * new).astype(np.intp), (middles * old).astype(np.intp)
    return csr_array(((lengths * new).astype(np.float32), (rows, columns)), shape=(new, old))


def _at_centres(labels: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    x, y, z = (((np.arange(m) + 0.5) * n / m).astype(np.intp) for n, m in zip(labels.shape, shape, strict=True))
    central: NDArray[np.uint8] = labels[np.ix_(x, y, z)]
    return central


def _grey_levels(hu: NDArray[np.float32], step_hu: float) -> NDArray[np.uint8]:
    levels = (np.clip(hu, LOWEST_HU, HIGHEST_HU) - LOWEST_HU) / np.float32(step_hu)
    return np.asarray(np.rint(levels), dtype=np.uint8)


def _nifti(voxels: NDArray[np.uint8], affine: NDArray[np.float64], step_hu: float | None) -> bytes:
    """A gzip file without time or name; of labels where ``step_hu`` is None."""
    header = Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(voxels.shape)
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner", strip_shears=True)
    header.set_xyzt_units("mm")
    if step_hu is None:
        header["intent_code"] = _LABEL_INTENT
        header.set_slope_inter(1.0, 0.0)
    else:
        header.set_slope_inter(step_hu, LOWEST_HU)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    compressor = zlib.compressobj(6, zlib.DEFLATED, _GZIP_WBITS)
    content = header.binaryblock + b"\0\0\0\0" + voxels.tobytes(order="F")
    return compressor.compress(content) + compressor.flush()
