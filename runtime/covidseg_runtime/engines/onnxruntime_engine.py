"""ONNX Runtime: the reference on CPUs, and the way to NVIDIA GPUs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.engines.telemetry import import_without_telemetry
from covidseg_runtime.errors import EngineError

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
_FAULTS = (
    "EPFail",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoSuchFile",
    "NotImplemented",
    "RuntimeException",
)


class OnnxRuntimeEngine:
    """Runs an ONNX network in float32 on the CPU, or on one CUDA device.

    Example:
        >>> engine = OnnxRuntimeEngine(bundle.model_path(), cuda_device=0)  # doctest: +SKIP
    """

    name = "onnxruntime"
    precision = "f32"

    def __init__(self, model_path: Path, *, threads: int | None = None, cuda_device: int | None = None) -> None:
        """Open the network.

        Args:
            model_path: An ONNX file that `load_bundle` verified.
            threads: Number of CPU threads; None leaves the choice to ONNX Runtime.
            cuda_device: Number of the GPU; None computes on the CPU.

        Raises:
            EngineError: if ONNX Runtime is missing, refuses the network, or has no such GPU.
        """
        self._runtime = import_onnxruntime()
        self._faults = _fault_types()
        providers = self._providers(cuda_device)
        options = self._runtime.SessionOptions()
        # The arena keeps the largest tile's memory for good; without it the peak is lower.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4  # a refusal is raised below, it need not be printed too
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = self._runtime.InferenceSession(model_path, options, providers=providers)
        except self._faults as exc:
            raise EngineError(f"ONNX Runtime refuses {model_path.name}: {exc}") from exc
        # ONNX Runtime goes on without the GPU when it cannot use it, and says so only in its log.
        if cuda_device is not None and session.get_providers()[0] != CUDA_PROVIDER:
            raise EngineError(
                f"ONNX Runtime cannot use cuda:{cuda_device}: there is no such GPU, or its driver "
                "or CUDA libraries are missing. Install them: pip install 'covidseg[gpu]'"
            )
        self._session: Any = session
        self._input_name: str = session.get_inputs()[0].name

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of `tiles`.

        Args:
            tiles: (N, 1, Z, Y, X) float32, clipped and scaled.

        Returns:
            (N, C, Z, Y, X) float32.

        Raises:
            EngineError: if the engine is closed or the network takes no tiles of this shape.
        """
        if self._session is None:
            raise EngineError("this engine is closed")
        # Tile by tile: the peak of memory does not grow with N.
        return np.concatenate([self._predict_one(tiles[i : i + 1]) for i in range(len(tiles))])

    def close(self) -> None:
        """Give the network's memory back; calling it again does nothing."""
        self._session = None

    def _predict_one(self, tile: NDArray[np.float32]) -> NDArray[np.float32]:
        feed = {self._input_name: np.ascontiguousarray(tile, dtype=np.float32)}
        try:
            (logits,) = self._session.run(None, feed)
        except self._faults as exc:
            raise EngineError(f"ONNX Runtime failed on a tile of shape {tile.shape}: {exc}") from exc
        return np.asarray(logits, dtype=np.float32)

    def _providers(self, cuda_device: int | None) -> list[Any]:
        if cuda_device is None:
            return [CPU_PROVIDER]
        if CUDA_PROVIDER not in self._runtime.get_available_providers():
            raise EngineError(
                "this ONNX Runtime was built without CUDA. Install the one with it: "
                "pip uninstall onnxruntime; pip install 'covidseg[gpu]'"
            )
        if hasattr(self._runtime, "preload_dlls"):
            self._runtime.preload_dlls()
        # TF32 keeps 10 bits of the mantissa; off, the GPU gives the CPU's labels.
        return [(CUDA_PROVIDER, {"device_id": cuda_device, "use_tf32": 0}), CPU_PROVIDER]


def import_onnxruntime() -> Any:  # noqa: ANN401 - the package carries no types
    """The onnxruntime package, without its telemetry.

    Raises:
        EngineError: if it is not installed.
    """
    try:
        return import_without_telemetry("onnxruntime")
    except ImportError as exc:
        raise EngineError(
            f"ONNX Runtime cannot be loaded ({exc}). Install it: pip install 'covidseg[ort]', "
            "or for NVIDIA GPUs: pip install 'covidseg[gpu]'"
        ) from exc


def _fault_types() -> tuple[type[Exception], ...]:
    # ONNX Runtime's own errors share no base class but Exception, so they are named one by one.
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = tuple(getattr(state, fault) for fault in _FAULTS if hasattr(state, fault))
    return (*own, RuntimeError, ValueError)
