"""TensorRT: an NVIDIA GPU's own engine, from a plan that was built beforehand on this machine.

The engine opens plans and never builds one: a build takes minutes, and belongs to `covidseg export MODEL --trt`.
It needs tensorrt (or tensorrt_rtx) and cuda-python, and no torch.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.bundle import sha256_of
from covidseg_runtime.engines.engine import in_one_line
from covidseg_runtime.engines.plan_cache import (
    HOW_TO_BUILD,
    GpuIdentity,
    StoredPlan,
    TensorRtIdentity,
    find_plan,
    read_plan,
)
from covidseg_runtime.errors import EngineError

FLAVOURS = ("tensorrt", "tensorrt_rtx")
_OLDEST = {"tensorrt": (10, 12), "tensorrt_rtx": (1, 0)}  # the first that take precision from the graph alone
_INSTALL = (
    "pip install --extra-index-url https://pypi.nvidia.com 'covidseg[tensorrt]' "
    "(its wheels come from NVIDIA's own package index)"
)
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class InstalledTensorRt:
    """The TensorRT of this Python.

    Attributes:
        module: The package.
        identity: Which one it is, and its version.
    """

    module: Any
    identity: TensorRtIdentity


class TensorRtEngine:
    """Runs the plan of an ONNX network on one CUDA device, in the precision of its graph.

    Example:
        >>> engine = TensorRtEngine(bundle.model_path("fp16"), cuda_device=0)  # doctest: +SKIP
    """

    name = "tensorrt"
    any_tile = False

    def __init__(self, model_path: Path, *, cuda_device: int = 0, cuda_graphs: bool = True) -> None:
        """Open the plan of a network.

        Args:
            model_path: An ONNX file that `load_bundle` verified; its plan lies in the user's cache.
            cuda_device: Number of the GPU.
            cuda_graphs: Launch a batch as one recorded CUDA graph; off only to measure what that brings.

        Raises:
            EngineError: if TensorRT, cuda-python, the driver or the GPU is missing, or no plan fits them.
        """
        installed = import_tensorrt()
        gpu = gpu_identity(cuda_device)
        stored = find_plan(model_path.name, sha256_of(model_path), installed.identity, gpu)
        select_gpu(cuda_device)
        engine = deserialise(installed, stored)
        self.precision = stored.precision
        self.batch = stored.key.batch[1]
        self._cuda_device = cuda_device
        self.device = f"cuda:{cuda_device}"
        self._tile_shape = (1, *stored.key.tile_shape)
        self._runner: _PlanRunner | None = _PlanRunner(installed.module, engine, self.batch, cuda_graphs=cuda_graphs)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of `tiles`, as many at a time as the plan takes.

        Args:
            tiles: (N, 1, Z, Y, X) float32, clipped and scaled.

        Returns:
            (N, C, Z, Y, X) float32, an array of the caller's own.

        Raises:
            EngineError: if the engine is closed or fails, or the network takes no tiles of this shape.
        """
        if self._runner is None:
            raise EngineError("this engine is closed")
        if tiles.shape[1:] != self._tile_shape:
            raise EngineError(f"the TensorRT plan takes tiles of shape {self._tile_shape}, not {tiles.shape[1:]}")
        select_gpu(self._cuda_device)  # each thread has a current device of its own
        starts = range(0, len(tiles), self.batch)
        return np.concatenate([self._runner.run(tiles[start : start + self.batch]) for start in starts])

    def close(self) -> None:
        """Give the GPU's memory back; calling it again does nothing."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None


@dataclass(frozen=True, eq=False)
class _Buffer:
    """One tensor in pinned host memory and on the device, for the largest batch."""

    host: NDArray[np.float32]
    host_address: int
    device_address: int

    def bytes_of(self, count: int) -> int:
        """Bytes of the first `count` tiles."""
        return self.host[:count].size * _FLOAT_BYTES


class _PlanRunner:
    """A plan on the device: one stream, buffers that stay where they are, one launch per batch size."""

    def __init__(self, tensorrt: Any, engine: Any, batch: int, *, cuda_graphs: bool) -> None:  # noqa: ANN401
        self._cuda = _import_cuda()
        self._engine = engine
        self._cuda_graphs = cuda_graphs
        self._contexts: list[Any] = []
        self._launches: dict[int, Callable[[], None]] = {}
        self._input, self._output = _tensor_names(tensorrt, engine)
        with ExitStack() as held:
            self._stream = _check(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))
            held.callback(self._cuda.cudaStreamDestroy, self._stream)
            self._tiles = self._reserve((batch, *tuple(engine.get_tensor_shape(self._input))[1:]), held)
            self._logits = self._reserve((batch, *tuple(engine.get_tensor_shape(self._output))[1:]), held)
            self._held = held.pop_all()

    def run(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (n, C, Z, Y, X) of at most a batch of tiles (n, 1, Z, Y, X)."""
        count = len(tiles)
        self._tiles.host[:count] = tiles
        if count not in self._launches:
            self._launches[count] = self._prepare(count)
        self._launches[count]()
        _check(self._cuda.cudaStreamSynchronize(self._stream))
        return self._logits.host[:count].copy()

    def close(self) -> None:
        """Free graphs, then contexts, then buffers and stream."""
        self._launches.clear()
        self._contexts.clear()
        self._held.close()
        self._engine = None

    def _reserve(self, shape: tuple[int, ...], held: ExitStack) -> _Buffer:
        count = math.prod(shape)
        device = int(_check(self._cuda.cudaMalloc(count * _FLOAT_BYTES)))
        held.callback(self._cuda.cudaFree, device)
        pinned = int(_check(self._cuda.cudaMallocHost(count * _FLOAT_BYTES)))
        held.callback(self._cuda.cudaFreeHost, pinned)
        array = np.ctypeslib.as_array((ctypes.c_float * count).from_address(pinned))
        return _Buffer(array.reshape(shape), pinned, device)

    def _prepare(self, count: int) -> Callable[[], None]:
        """What computes a batch of `count` tiles, from host buffer to host buffer."""
        # A context of its own: another shape in a context would spoil the graph recorded with it.
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineError(f"TensorRT cannot prepare a batch of {count} tiles: the GPU's memory does not suffice")
        self._contexts.append(context)
        if not (
            context.set_input_shape(self._input, (count, *self._tiles.host.shape[1:]))
            and context.set_tensor_address(self._input, self._tiles.device_address)
            and context.set_tensor_address(self._output, self._logits.device_address)
        ):
            raise EngineError(f"the TensorRT plan takes no batch of {count} tiles")
        enqueue = partial(self._enqueue, context, count)
        if not self._cuda_graphs:
            return enqueue
        # The first run at a shape does work that happens only once and must not be recorded.
        enqueue()
        _check(self._cuda.cudaStreamSynchronize(self._stream))
        graph = self._record(enqueue)
        executable = _check(self._cuda.cudaGraphInstantiate(graph, 0))
        self._held.callback(self._cuda.cudaGraphExecDestroy, executable)
        _check(self._cuda.cudaGraphDestroy(graph))
        return lambda: _check(self._cuda.cudaGraphLaunch(executable, self._stream))

    def _enqueue(self, context: Any, count: int) -> None:  # noqa: ANN401 - tensorrt carries no types
        tiles, logits, kinds = self._tiles, self._logits, self._cuda.cudaMemcpyKind
        to_device, to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        copy, stream = self._cuda.cudaMemcpyAsync, self._stream
        _check(copy(tiles.device_address, tiles.host_address, tiles.bytes_of(count), to_device, stream))
        if not context.execute_async_v3(int(stream)):
            raise EngineError(f"TensorRT failed on a batch of {count} tiles")
        _check(copy(logits.host_address, logits.device_address, logits.bytes_of(count), to_host, stream))

    def _record(self, enqueue: Callable[[], None]) -> Any:  # noqa: ANN401 - a handle of cuda-python
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _check(self._cuda.cudaStreamBeginCapture(self._stream, mode))
        try:
            enqueue()
        finally:
            recorded = self._cuda.cudaStreamEndCapture(self._stream)
        return _check(recorded)


def import_tensorrt() -> InstalledTensorRt:
    """The TensorRT of this Python: tensorrt, or tensorrt_rtx where that is what is installed.

    Raises:
        EngineError: if there is neither, or it is too old.
    """
    problems = []
    for flavour in FLAVOURS:
        try:
            module = import_module(flavour)
        except (ImportError, OSError) as exc:
            problems.append(str(exc))
            continue
        identity = TensorRtIdentity(flavour, str(module.__version__))
        refuse_old(identity)
        return InstalledTensorRt(module, identity)
    raise EngineError(f"TensorRT cannot be loaded ({'; '.join(problems)}). Install it: {_INSTALL}")


def refuse_old(tensorrt: TensorRtIdentity) -> None:
    """Refuse a TensorRT whose graphs do not carry their precision themselves.

    Raises:
        EngineError: if it is older than 10.12.
    """
    oldest = _OLDEST[tensorrt.flavour]
    if tuple(int(part) for part in tensorrt.version.split(".")[:2]) < oldest:
        needed = ".".join(str(part) for part in oldest)
        raise EngineError(f"{tensorrt} is too old: {needed} or later is needed. Install it: {_INSTALL}")


def gpu_identity(cuda_device: int) -> GpuIdentity:
    """The GPU of that number and its driver.

    Raises:
        EngineError: if cuda-python, the driver or the GPU is missing.
    """
    cuda = _import_cuda()
    error, count = cuda.cudaGetDeviceCount()
    if int(error) != 0 or not count:
        raise EngineError(
            f"no NVIDIA GPU can be used here (CUDA reports {error.name}): install NVIDIA's driver, or use --device cpu"
        )
    if not 0 <= cuda_device < count:
        raise EngineError(f"there is no GPU cuda:{cuda_device}: this machine has cuda:0 to cuda:{count - 1}")
    properties = _check(cuda.cudaGetDeviceProperties(cuda_device))
    driver = int(_check(cuda.cudaDriverGetVersion()))  # 13020 is 13.2
    return GpuIdentity(
        name=bytes(properties.name).split(b"\0")[0].decode(),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=f"{driver // 1000}.{driver % 1000 // 10}",
    )


def select_gpu(cuda_device: int) -> None:
    """Make a GPU the one that this thread's CUDA calls go to.

    Raises:
        EngineError: if it cannot be used.
    """
    _check(_import_cuda().cudaSetDevice(cuda_device))


def deserialise(installed: InstalledTensorRt, stored: StoredPlan) -> Any:  # noqa: ANN401 - ICudaEngine
    """Open a plan, after its bytes were checked.

    Raises:
        EngineError: if the plan is altered, or TensorRT cannot open it.
    """
    plan = read_plan(stored)
    logger = error_collector(installed.module)
    runtime = installed.module.Runtime(logger)
    if stored.key.flags.get("version_compatible"):
        runtime.engine_host_code_allowed = True  # such a plan brings its own runtime along, as code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"TensorRT cannot open its plan {stored.path} ({last_error(logger)}); build it again: {HOW_TO_BUILD}"
        )
    return engine


def error_collector(tensorrt: Any) -> Any:  # noqa: ANN401 - tensorrt.ILogger
    """A logger that keeps errors in its list ``errors`` and prints nothing."""

    class ErrorCollector(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401 - tensorrt.ILogger.Severity
            if severity <= tensorrt.ILogger.ERROR:
                self.errors.append(message)

    return ErrorCollector()


def last_error(logger: Any) -> str:  # noqa: ANN401 - what `error_collector` made
    """The last error of an `error_collector`, in one line."""
    return in_one_line(logger.errors[-1]) if logger.errors else "it gives no reason"


def _tensor_names(tensorrt: Any, engine: Any) -> tuple[str, str]:  # noqa: ANN401 - tensorrt carries no types
    names = [str(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
    (tiles,) = (name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT)
    (logits,) = (name for name in names if name != tiles)
    return tiles, logits


def _import_cuda() -> Any:  # noqa: ANN401 - cuda-python carries no types
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as exc:
        raise EngineError(f"cuda-python cannot be loaded ({exc}). Install it: {_INSTALL}") from exc


def _check(result: tuple[Any, ...]) -> Any:  # noqa: ANN401 - whatever the CUDA call gives
    """The value of a CUDA call, which gives (error, value).

    Raises:
        EngineError: if it failed.
    """
    error, *values = result
    if int(error) != 0:
        raise EngineError(f"the GPU failed: CUDA reports {error.name}")
    return values[0] if values else None
