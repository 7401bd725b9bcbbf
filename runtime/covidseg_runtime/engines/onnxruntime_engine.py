"""ONNX Runtime: the reference on CPUs, and the way to NVIDIA GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.engines.engine import GPU_BATCH, in_one_line
from covidseg_runtime.engines.telemetry import import_without_telemetry
from covidseg_runtime.errors import EngineError, SettingsError

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
PRECISIONS = ("f32", "f16", "int8")
# What happens where the GPU, or a part of the network on it, cannot be used.
OnMissingGpu = Literal["refuse", "use-cpu"]

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
    """Runs an ONNX network on the CPU, or on one CUDA device; one call at a time.

    Example:
        >>> engine = OnnxRuntimeEngine(bundle.model_path(), cuda_device=0)  # doctest: +SKIP
        >>> engine.provider  # doctest: +SKIP
        'CUDAExecutionProvider'
    """

    name = "onnxruntime"
    any_tile = False

    def __init__(
        self,
        model_path: Path,
        *,
        threads: int | None = None,
        cuda_device: int | None = None,
        precision: str = "f32",
        max_batch: int | None = None,
        on_missing_gpu: OnMissingGpu = "refuse",
    ) -> None:
        """Open the network.

        Args:
            model_path: An ONNX file that `load_bundle` verified.
            threads: Number of CPU threads; None leaves the choice to ONNX Runtime.
            cuda_device: Number of the GPU; None computes on the CPU.
            precision: What the graph computes in, "f32", "f16" or "int8"; the file decides, this says so.
            max_batch: The most tiles computed at once; None is 4 on a GPU, and 1 on a CPU, where more only take
                more memory.
            on_missing_gpu: "refuse" wants every operator on the GPU; "use-cpu" computes on the CPU what the GPU
                cannot, be it all.

        Raises:
            EngineError: if ONNX Runtime is missing, refuses the network, or has no such GPU.
            SettingsError: if `max_batch` is no number of tiles.
        """
        if precision not in PRECISIONS:
            raise EngineError(f"precision {precision!r} is unknown: expected one of {PRECISIONS}")
        if max_batch is not None and max_batch < 1:
            raise SettingsError(f"max_batch is {max_batch}: expected 1 or more")
        self.precision = precision
        self._runtime = import_onnxruntime()
        self._faults = _fault_types()
        session = self._open(model_path, self._options(threads), cuda_device, on_missing_gpu)
        self._session: Any = session
        self._provider = str(session.get_providers()[0])
        on_gpu = self._provider == CUDA_PROVIDER
        self._device = ("cuda", cuda_device) if on_gpu else ("cpu", 0)
        self.device = f"cuda:{cuda_device}" if on_gpu else "cpu"
        self.threads = threads
        self.batch = max_batch or (GPU_BATCH if on_gpu else 1)
        self._input, self._output = session.get_inputs()[0], session.get_outputs()[0]
        self._tile_shape = _shape_of_one(self._input, model_path)
        self._logits_shape = _shape_of_one(self._output, model_path)
        self._bound: dict[int, _BoundBatch] = {}

    @property
    def provider(self) -> str:
        """What really computes, as ONNX Runtime names it: "CUDAExecutionProvider" or "CPUExecutionProvider"."""
        return self._provider

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of `tiles`.

        Args:
            tiles: (N, 1, Z, Y, X) float32, clipped and scaled.

        Returns:
            (N, C, Z, Y, X) float32, an array of the caller's own.

        Raises:
            EngineError: if the engine is closed or fails, or the network takes no tiles of this shape.
        """
        if self._session is None:
            raise EngineError("this engine is closed")
        if tiles.shape[1:] != self._tile_shape:
            raise EngineError(
                f"ONNX Runtime failed on tiles of shape {tiles.shape}: the network takes {self._tile_shape} each"
            )
        logits = np.empty((len(tiles), *self._logits_shape), np.float32)
        for start in range(0, len(tiles), self.batch):
            batch = tiles[start : start + self.batch]
            # The bound output is filled again by the next batch: it is copied out at once.
            logits[start : start + len(batch)] = self._predict_batch(batch)
        return logits

    def close(self) -> None:
        """Give the network's memory back; calling it again does nothing."""
        self._bound = {}
        self._session = None

    def _predict_batch(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of at most `batch` tiles; valid until the next call."""
        try:
            if len(tiles) not in self._bound:
                self._bound[len(tiles)] = self._bind(len(tiles))
            bound = self._bound[len(tiles)]
            bound.tiles.update_inplace(np.ascontiguousarray(tiles, dtype=np.float32))
            self._session.run_with_iobinding(bound.binding)
            logits: NDArray[np.float32] = bound.logits.numpy()
        except self._faults as exc:
            raise EngineError(f"ONNX Runtime failed on tiles of shape {tiles.shape}: {in_one_line(str(exc))}") from exc
        return logits

    def _bind(self, count: int) -> _BoundBatch:
        """Reserve and bind what a batch of `count` tiles needs on the device."""
        reserve = self._runtime.OrtValue.ortvalue_from_shape_and_type
        tiles = reserve((count, *self._tile_shape), np.float32, *self._device)
        logits = reserve((count, *self._logits_shape), np.float32, *self._device)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input.name, tiles)
        binding.bind_ortvalue_output(self._output.name, logits)
        return _BoundBatch(binding, tiles, logits)

    def _options(self, threads: int | None) -> Any:  # noqa: ANN401 - onnxruntime carries no types
        options = self._runtime.SessionOptions()
        # The arena keeps the largest tile's memory for good; without it the peak is lower.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4  # a refusal is raised below, it need not be printed too
        if threads is not None:
            options.intra_op_num_threads = threads
        return options

    def _open(
        self,
        model_path: Path,
        options: Any,  # noqa: ANN401 - onnxruntime carries no types
        cuda_device: int | None,
        on_missing_gpu: OnMissingGpu,
    ) -> Any:  # noqa: ANN401 - onnxruntime carries no types
        """A session on the providers asked for and, unless `use-cpu`, on no other."""
        providers = self._providers(cuda_device, on_missing_gpu)
        must_be_gpu = CPU_PROVIDER not in providers
        if must_be_gpu:
            # ONNX Runtime computes on the CPU what its provider cannot, and says so only in its log.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            # Its own fallback prints to stdout, and goes on without the GPU.
            session = self._runtime.InferenceSession(model_path, options, providers=providers, enable_fallback=0)
        except self._faults as exc:
            if must_be_gpu:
                raise _cannot_use_gpu(model_path, cuda_device, str(exc)) from exc
            if len(providers) > 1:
                return self._open(model_path, options, None, on_missing_gpu)
            raise EngineError(f"ONNX Runtime refuses {model_path.name}: {in_one_line(str(exc))}") from exc
        if must_be_gpu and session.get_providers()[0] != CUDA_PROVIDER:
            raise _cannot_use_gpu(model_path, cuda_device, f"it runs on {session.get_providers()[0]}")
        return session

    def _providers(self, cuda_device: int | None, on_missing_gpu: OnMissingGpu) -> list[Any]:
        if cuda_device is None:
            return [CPU_PROVIDER]
        if CUDA_PROVIDER not in self._runtime.get_available_providers():
            if on_missing_gpu == "use-cpu":
                return [CPU_PROVIDER]
            raise EngineError(
                "this ONNX Runtime was built without CUDA. Install the one with it: "
                "pip uninstall onnxruntime; pip install 'covidseg[gpu]'"
            )
        if hasattr(self._runtime, "preload_dlls"):
            self._runtime.preload_dlls()
        # TF32 keeps 10 bits of the mantissa; off, the GPU gives the CPU's labels.
        cuda = (CUDA_PROVIDER, {"device_id": cuda_device, "use_tf32": 0})
        return [cuda] if on_missing_gpu == "refuse" else [cuda, CPU_PROVIDER]


@dataclass(frozen=True, eq=False)
class _BoundBatch:
    """Input and output of one batch size, on the device that computes, bound once."""

    binding: Any
    tiles: Any
    logits: Any


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


def _cannot_use_gpu(model_path: Path, cuda_device: int | None, reason: str) -> EngineError:
    return EngineError(
        f"ONNX Runtime cannot compute {model_path.name} on cuda:{cuda_device} alone ({reason}): there is no such GPU, "
        "its driver or CUDA libraries are missing, or this ONNX Runtime is too old for some of the operators. "
        "Install them: pip install --upgrade 'covidseg[gpu]'"
    )


def _shape_of_one(value: Any, model_path: Path) -> tuple[int, ...]:  # noqa: ANN401 - onnxruntime carries no types
    """Shape of a network's input or output without the batch."""
    shape = tuple(value.shape[1:])
    if value.type != "tensor(float)" or not all(isinstance(length, int) for length in shape):
        raise EngineError(
            f"ONNX Runtime cannot bind {model_path.name}: its {value.name} is {value.type} of shape {value.shape}; "
            "expected float32 and a shape that is fixed but for the batch"
        )
    return shape


def _fault_types() -> tuple[type[Exception], ...]:
    # ONNX Runtime's own errors share no base class but Exception, so they are named one by one.
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = tuple(getattr(state, fault) for fault in _FAULTS if hasattr(state, fault))
    return (*own, RuntimeError, ValueError, IndexError, OverflowError, MemoryError)
