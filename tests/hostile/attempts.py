"""What reading a hostile file may end in: a sound result or the documented error. All else is `UndocumentedError`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from covidseg_runtime.bundle import ModelBundle, load_bundle
from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from covidseg_runtime.engines.openvino_engine import OpenVinoEngine
from covidseg_runtime.errors import BundleError, CovidsegError, EngineError, VolumeError
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_extent import LARGEST_AXIS, LARGEST_VOLUME
from covidseg_runtime.volume_files import read_label_map, read_volume

LONGEST_MESSAGE = 1000
LARGEST_TILE = 32**3


class UndocumentedError(Exception):
    """Another error than the documented one, or a result that is not sound."""


def attempt_scan(path: Path) -> str:
    """Read a file as a CT.

    Returns:
        "read", or the name of the error.

    Raises:
        UndocumentedError: if anything else happens than a sound volume or a VolumeError.
    """
    return _read(path, read_volume, ("int16", "float32"))


def attempt_scan_and_labels(path: Path) -> str:
    """Read a file as a CT and as a label map.

    Returns:
        "read" if either accepts it, otherwise the name of the error.

    Raises:
        UndocumentedError: if either does anything else than to return a sound volume or to raise a VolumeError.
    """
    ends = (attempt_scan(path), _read(path, read_label_map, ("uint8",)))
    return "read" if "read" in ends else ends[0]


def attempt_series(folder: Path) -> str:
    """Read a folder as a DICOM series.

    Returns:
        "read", or the name of the error.

    Raises:
        UndocumentedError: if anything else happens than a sound volume or a VolumeError.
    """
    from covidseg_runtime.dicom.read_series import read_series

    def read_dicom(path: Path) -> Volume:
        return read_series(path)[0]

    return _read(folder, read_dicom, ("int16", "float32"))


def attempt_bundle(folder: Path) -> str:
    """Load a bundle and run each of its networks on one tile in both engines.

    Returns:
        "opened" if either engine opens a network, otherwise the name of the last error.

    Raises:
        UndocumentedError: if anything else happens than success, a BundleError or an EngineError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bundle = load_bundle(folder)
            models = [file.name for file in bundle.files if file.name.endswith(".onnx")]
    except BundleError as error:
        return _refused(error)
    except Exception as error:
        raise UndocumentedError(f"load_bundle: {type(error).__name__}: {str(error)[:200]}") from error
    ends = [_run(bundle, folder / name, kind) for name in models for kind in (OpenVinoEngine, OnnxRuntimeEngine)]
    return "opened" if "opened" in ends else (ends or ["loaded"])[-1]


def _read(path: Path, read: Callable[[Path], Volume], kinds: tuple[str, ...]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            volume = read(path)
    except VolumeError as error:
        return _refused(error)
    except (Exception, RecursionError) as error:
        raise UndocumentedError(f"{read.__name__}: {type(error).__name__}: {str(error)[:200]}") from error
    sound = (
        volume.voxels.dtype.name in kinds
        and min(volume.shape) >= 2
        and max(volume.shape) <= LARGEST_AXIS
        and volume.voxels.size <= LARGEST_VOLUME
        and np.isfinite(volume.voxels).all()
        and volume.affine.shape == (4, 4)
        and np.isfinite(volume.affine).all()
        and abs(np.linalg.det(volume.affine[:3, :3] / volume.spacing_mm)) > 1e-4
        and len(volume.orientation) == 3
    )
    if not sound:
        raise UndocumentedError(f"{read.__name__} returned {volume.voxels.dtype} {volume.shape} with {volume.affine}")
    return "read"


def _run(bundle: ModelBundle, model: Path, kind: Callable[..., Engine]) -> str:
    try:
        engine = kind(model, threads=1)
        shape = bundle.tile_plan.tile_shape
        if np.prod(np.array(shape, float)) <= LARGEST_TILE:
            engine.predict(np.zeros((1, 1, *shape), np.float32))
        engine.close()
    except EngineError as error:
        return _refused(error, longest=20_000)  # engines explain themselves at length
    except Exception as error:
        raise UndocumentedError(f"{kind.__name__}: {type(error).__name__}: {str(error)[:200]}") from error
    return "opened"


def _refused(error: CovidsegError, longest: int = LONGEST_MESSAGE) -> str:
    """The name of an error whose message can be shown."""
    message = str(error)
    one_line = isinstance(error, EngineError) or not set("\n\r") & set(message)
    if not (one_line and 0 < len(message) <= longest):
        raise UndocumentedError(
            f"{type(error).__name__} with a message of {len(message)} characters: {message[:200]!r}"
        )
    try:
        message.encode()
    except UnicodeEncodeError as encoding:
        raise UndocumentedError(
            f"{type(error).__name__} with a message that cannot be written: {message!r}"
        ) from encoding
    return type(error).__name__
