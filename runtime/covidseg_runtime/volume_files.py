"""NIfTI files in and out. Reading judges before it allocates; writing leaves a whole file or none."""

import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from gzip import BadGzipFile
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np
from isal import igzip, isal_zlib
from isal.isal_zlib import error as isal_error
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from covidseg_runtime.errors import OutputError, VolumeError
from covidseg_runtime.intensity import BRIGHTEST, Window, grey_levels_to_hounsfield, judge_window
from covidseg_runtime.nifti_header import NIFTI2_BYTES, NiftiLayout, judge_header
from covidseg_runtime.scan_kind import has_nifti_ending, is_gzip_name
from covidseg_runtime.spooling import Spool, planes, release, zeros
from covidseg_runtime.volume import Volume

# Small enough to stay in a core's cache between the decoder and the voxels.
_CHUNK = 1 << 20
_BYTES_BETWEEN = 16 * _CHUNK
# How many bytes may unfold from one. Deflate cannot do more than 1032, which a label map without a finding comes near
# to; a CT with its noise does 2 to 4, and some 20 with its surroundings blanked.
_LARGEST_UNFOLDING = 1032
_LARGEST_UNFOLDING_OF_A_CT = 200
_SMALL_BYTES = 1 << 26  # what is small is read, however tightly it is packed
_FEW_VALUES = 12
_LOWEST_HU, _HIGHEST_HU = -10_000, 40_000
# No chest CT is without voxels of this little density (lung, or air around the patient).
_LUNG_OR_AIR_HU = -200


def read_volume(path: str | Path, *, spool: Spool | None = None, window: Window | None = None) -> Volume:
    """Read a CT.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        spool: Where the voxels lie, in a file that has no name, if they are many and int16 in the result.
        window: (lowest, highest) HU, for a scan published as grey levels from 0 to 255 of this window; None for one
            in HU.

    Returns:
        The volume in HU; int16 where the file stores HU as int16 or grey levels, else float32.

    Raises:
        VolumeError: If the file is not a 3D CT with a sound geometry, in HU or, with ``window``, in grey levels.
        SettingsError: If ``window`` is no window of a CT.
    """
    path = Path(path)
    if window is not None:
        judge_window(window)
    volume = read_voxels(path, spool=spool)
    if window is not None:
        _judge_grey_levels(volume.voxels, path.name)
        volume = Volume(_mapped_back(volume.voxels, window, spool), volume.affine, window)
    judge_hounsfield(volume, path.name)
    return volume


def read_label_map(path: str | Path) -> Volume:
    """Read a label map or a mask.

    Raises:
        VolumeError: If the file is not a 3D volume of whole numbers from 0 to 255.
    """
    path = Path(path)
    volume = _read(path, _LARGEST_UNFOLDING, None)
    voxels = volume.voxels
    lowest, highest = voxels.min(), voxels.max()
    whole = voxels.dtype.kind in "iu" or bool((voxels == np.rint(voxels)).all())
    if not whole or lowest < 0 or highest > 255:
        raise VolumeError(
            f"{path.name} holds values from {lowest} to {highest}; a label map has whole numbers from 0 to 255."
        )
    return Volume(voxels.astype(np.uint8), volume.affine)


def read_voxels(path: Path, *, spool: Spool | None = None) -> Volume:
    """Read a scan of any values, such as a crop without air or grey levels that a caller turns into HU.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        spool: As of `read_volume`.

    Raises:
        VolumeError: If the file is not a whole 3D NIfTI file with a sound geometry.
    """
    return _read(path, _LARGEST_UNFOLDING_OF_A_CT, spool)


def _read(path: Path, unfolding: int, spool: Spool | None) -> Volume:
    if not has_nifti_ending(path.name):
        raise VolumeError(f"{path.name} ends neither in .nii nor in .nii.gz; give a CT as NIfTI.")
    try:
        if not path.is_file():
            raise VolumeError(f"{path} is not a file; give the path of a .nii or .nii.gz file.")
        with _open(path) as file:
            # Read at most what the header promises, so that a small file cannot unfold without end.
            head = _read_up_to(file, NIFTI2_BYTES)
            layout = judge_header(head, path.name)
            size = path.stat().st_size
            _judge_promise(layout, size, unfolding, path.name)
            # No more is reserved than a file of this size can hold, whatever its header says.
            buffer = zeros((min(layout.data_bytes, size * _LARGEST_UNFOLDING),), np.uint8, spool)
            _read_data(file, head, layout, buffer, path.name)
        voxels = buffer.view(layout.dtype).reshape(layout.shape, order="F")
        return Volume(_scaled(voxels, layout, path.name), layout.affine)
    except (BadGzipFile, EOFError, zlib.error, isal_error) as error:  # type: ignore[misc]  # the stub of isal: an instance
        raise VolumeError(f"{path.name} is not a whole gzip file ({error}); copy it again.") from error
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror or error}.") from error
    except MemoryError as error:
        raise VolumeError(f"{path.name} takes more memory than is free on this machine.") from error


def write_label_map(path: str | Path, labels: NDArray[np.uint8], like: Volume) -> None:
    """Write labels with the geometry of a scan, atomically.

    Args:
        path: ``.nii`` or ``.nii.gz``; an existing file is replaced.
        labels: (X, Y, Z) uint8.
        like: The scan whose affine the labels get.

    Raises:
        VolumeError: If shapes differ, the ending is unknown or the file cannot be written.
    """
    _write_like(Path(path), labels, like, slope=1.0, description=b"covidseg label map, research use only")


def write_probability_map(path: str | Path, probability: NDArray[np.uint8], like: Volume) -> None:
    """Write a probability with the geometry of a scan, atomically; readers of NIfTI see values from 0 to 1.

    Args:
        path: ``.nii`` or ``.nii.gz``; an existing file is replaced.
        probability: (X, Y, Z) uint8 in 255ths.
        like: The scan whose affine it gets.

    Raises:
        VolumeError: If shapes differ, the ending is unknown or the file cannot be written.
    """
    _write_like(Path(path), probability, like, slope=1 / 255, description=b"covidseg probability, research use only")


def _write_like(path: Path, voxels: NDArray[np.uint8], like: Volume, *, slope: float, description: bytes) -> None:
    if voxels.shape != like.shape:
        raise VolumeError(f"The labels have shape {voxels.shape}, the scan {like.shape}.")
    header = Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(voxels.shape)
    header.set_sform(like.affine, code="scanner")
    header.set_qform(like.affine, code="scanner", strip_shears=True)
    header.set_xyzt_units("mm")
    header.set_slope_inter(slope, 0.0)
    header["descrip"] = description
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    parts = _header_and_slices(header.binaryblock + b"\0\0\0\0", voxels)
    if path.name.endswith(".nii.gz"):
        parts = _compressed(parts)
    elif path.suffix != ".nii":
        raise VolumeError(f"{path.name} ends neither in .nii nor in .nii.gz; label maps are written as NIfTI.")
    _write_parts_atomic(path, parts)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON atomically; NaN is refused, as JSON has none."""
    write_bytes_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary file beside it, fsync, rename, fsync of the folder.

    Raises:
        OutputError: If the folder is missing, read-only or full.
    """
    _write_parts_atomic(path, [content])


def _write_parts_atomic(path: Path, parts: Iterable[bytes]) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
                os.replace(file.name, path)
            except BaseException:
                with suppress(OSError):
                    Path(file.name).unlink()
                raise
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; give another place.") from error


def _header_and_slices(header: bytes, labels: NDArray[np.uint8]) -> Iterator[bytes]:
    """The content of a NIfTI file, slice by slice: a copy of all labels would add its size to the peak of memory."""
    yield header
    for plane in planes(labels.T):
        yield plane.astype(np.uint8, copy=False).tobytes()


def _compressed(parts: Iterable[bytes]) -> Iterator[bytes]:
    """A gzip file without time or name: the same labels give the same bytes."""
    compressor = isal_zlib.compressobj(level=1, wbits=31)
    for part in parts:
        yield compressor.compress(part)
    yield compressor.flush()


def sync_folder(folder: Path) -> None:
    """Make a rename in it outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> BufferedIOBase:
    if is_gzip_name(path.name):
        return cast(BufferedIOBase, igzip.open(path, "rb"))
    return path.open("rb")


def _judge_promise(layout: NiftiLayout, size: int, unfolding: int, name: str) -> None:
    most = size * unfolding if is_gzip_name(name) else size
    if layout.data_bytes > max(most, _SMALL_BYTES):
        raise VolumeError(
            f"{name} promises {layout.data_bytes:,} bytes of voxels in a file of {size:,} bytes; copy it again."
        )


def _read_up_to(file: BufferedIOBase, count: int) -> bytes:
    parts = []
    while count > 0 and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _read_data(file: BufferedIOBase, head: bytes, layout: NiftiLayout, data: NDArray[np.uint8], name: str) -> None:
    """Fill ``data`` with the voxels' bytes; it is no longer than a file of this size can hold."""
    skip = layout.data_offset - len(head)
    early = head[layout.data_offset :][: layout.data_bytes] if skip < 0 else b""
    if skip > 0 and len(_read_up_to(file, skip)) < skip:
        raise VolumeError(f"{name} ends within its header; copy it again.")
    data[: len(early)] = np.frombuffer(early, np.uint8)
    view, count = data.data, len(early)
    while count < len(data) and (read := file.readinto(view[count : count + _CHUNK])):
        count += read
        if count % _BYTES_BETWEEN < _CHUNK:
            release(data)
    release(data)
    if count < layout.data_bytes:
        raise VolumeError(f"{name} promises {layout.data_bytes:,} bytes of voxels and holds {count:,}; copy it again.")
    # The gzip checksum stands after the last byte; reading on makes the decoder compare it.
    file.read(1)


def _scaled(voxels: NDArray[Any], layout: NiftiLayout, name: str) -> NDArray[Any]:
    """Values in HU: stored whole numbers stay int16 where they can, all else becomes float32."""
    if voxels.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in voxels.T):
        raise VolumeError(f"{name} holds values that are not finite (NaN or infinity); a CT in HU is expected.")
    native = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind in "iu" and layout.slope == 1 and layout.intercept == int(layout.intercept):
        shift = int(layout.intercept)
        if native.dtype == np.int16 and shift == 0:
            return native
        lowest, highest = int(native.min()) + shift, int(native.max()) + shift
        if lowest >= -32768 and highest <= 32767:
            return _shifted(native, shift)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below, in a sentence
        scaled = native.astype(np.float32, copy=False)
        scaled *= np.float32(layout.slope)
        scaled += np.float32(layout.intercept)
    if not math.isfinite(float(scaled.min()) + float(scaled.max())):
        raise VolumeError(f"{name} holds values beyond any HU after scaling; a CT in HU is expected.")
    return scaled


def _shifted(stored: NDArray[Any], shift: int) -> NDArray[np.int16]:
    """Whole numbers plus ``shift``, slice by slice: a wider copy of all of them would be the largest array there is."""
    hu = np.empty(stored.shape, np.int16, order="F")
    for plane, stored_plane in zip(hu.T, stored.T, strict=True):
        plane[...] = stored_plane.astype(np.int64) + shift
    return hu


def _range(voxels: NDArray[Any]) -> tuple[float, float]:
    """Lowest and highest value, plane by plane."""
    ranges = [(float(plane.min()), float(plane.max())) for plane in planes(voxels.T)]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _mapped_back(levels: NDArray[Any], window: Window, spool: Spool | None) -> NDArray[np.int16]:
    """Grey levels turned into HU, plane by plane and, where they are int16 already, in their place."""
    hu = levels if levels.dtype == np.int16 else zeros(levels.shape[::-1], np.int16, spool).T
    for plane, plane_levels in zip(planes(hu.T), planes(levels.T), strict=True):
        plane[...] = grey_levels_to_hounsfield(plane_levels, window)
    return hu


def _judge_grey_levels(voxels: NDArray[Any], name: str) -> None:
    lowest, highest = _range(voxels)
    if lowest < 0 or highest > BRIGHTEST:
        raise VolumeError(
            f"{name} holds values from {lowest:g} to {highest:g}; with a window, grey levels from 0 to {BRIGHTEST} are "
            "expected: give a CT in Hounsfield units without --window."
        )
    _refuse_label_map(voxels, name, lowest, highest)


def _refuse_label_map(voxels: NDArray[Any], name: str, lowest: float, highest: float) -> None:
    if lowest >= 0 and highest <= BRIGHTEST and np.unique(voxels[::2, ::2, ::2]).size <= _FEW_VALUES:
        raise VolumeError(
            f"{name} holds values from {lowest:g} to {highest:g}, few of them: this looks like a label map; give the "
            "CT itself."
        )


def judge_hounsfield(volume: Volume, name: str) -> None:
    """Refuse what holds no Hounsfield units of a CT.

    Args:
        volume: As it was read.
        name: What the message calls it.

    Raises:
        VolumeError: If the values are a label map's, impossible, without air, or nothing but air.
    """
    lowest, highest = _range(volume.voxels)
    given = f"{name} holds values from {lowest:g} to {highest:g}"
    if volume.window_hu is None:
        _refuse_label_map(volume.voxels, name, lowest, highest)
    if lowest < _LOWEST_HU or highest > _HIGHEST_HU:
        raise VolumeError(f"{given}; Hounsfield units of a CT (about -1024 to 3071) are expected.")
    if lowest > _LUNG_OR_AIR_HU:
        has_grey_levels = volume.window_hu is None and lowest >= 0 and 1 < highest <= BRIGHTEST
        way = f"; if it is a window scaled to 0–{BRIGHTEST}, give it with --window LOW,HIGH" if has_grey_levels else ""
        raise VolumeError(
            f"{given}: nothing as light as lung or air (below {_LUNG_OR_AIR_HU} HU); give Hounsfield units, "
            f"not windowed, normalised or unshifted values{way}."
        )
    if highest < _LUNG_OR_AIR_HU:
        raise VolumeError(f"{given}: nothing but air; give a CT of a chest in Hounsfield units.")
