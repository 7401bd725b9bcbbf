"""OpenVINO: the engine for CPUs.

It reads the bundle's ONNX file itself. Without a hint it would compute in bf16 where the processor
can; float32 is therefore asked for by name, so that two machines give the same labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.engines.engine import in_one_line
from covidseg_runtime.engines.telemetry import import_without_telemetry
from covidseg_runtime.errors import EngineError

PRECISIONS = ("f32", "bf16", "f16", "int8")
# What C++ errors become in Python; a ValueError also is a message that is no UTF-8, as when a damaged name is in it.
_FAULTS = (RuntimeError, ValueError, IndexError, OverflowError, MemoryError)


class OpenVinoEngine:
    """Runs an ONNX network on the CPU, one tile at a time.

    Example:
        >>> engine = OpenVinoEngine(bundle.model_path())            # doctest: +SKIP
        >>> engine.predict(np.zeros((1, 1, 96, 160, 160), "f4")).shape  # doctest: +SKIP
        (1, 4, 96, 160, 160)
    """

    name = "openvino"
    device = "cpu"
    batch = 1

    def __init__(
        self, model_path: Path, *, precision: str = "f32", threads: int | None = None, any_tile: bool = False
    ) -> None:
        """Compile the network for this CPU.

        Args:
            model_path: An ONNX file that `load_bundle` verified.
            precision: What is computed in: "f32"; "bf16" where the processor can; "f16" for an fp16 file, whose half
                precision is computed in float32 where the processor has none; "int8" for a quantised file, whose
                other layers are computed in bf16 where the processor can, otherwise in float32.
            threads: Number of CPU threads; None leaves the choice to OpenVINO.
            any_tile: Whether tiles of other shapes than the file's come: only for a network that fits every tile.

        Raises:
            EngineError: if OpenVINO is missing, refuses the network or cannot do `precision`.
        """
        openvino = import_openvino()
        if precision not in PRECISIONS:
            raise EngineError(f"precision {precision!r} is unknown: expected one of {PRECISIONS}")
        core = openvino.Core()
        able = cpu_precisions(core)
        if precision == "bf16" and precision not in able:
            raise EngineError(f"this CPU cannot compute in {precision}; it can {', '.join(able)}")
        self.precision, self.any_tile = precision, any_tile
        hints: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _hint(precision, able),
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            hints["INFERENCE_NUM_THREADS"] = threads
            # Who names a number shares the machine, and pinned threads of every process begin at the first core.
            hints["ENABLE_CPU_PINNING"] = False
        try:
            model = core.read_model(model_path)
            # A batch of exactly one lets OpenVINO plan its memory once.
            shape = model.input(0).get_partial_shape()
            shape[0] = 1
            if any_tile:
                for axis in (2, 3, 4):
                    shape[axis] = -1
            model.reshape(shape)
            compiled = core.compile_model(model, "CPU", hints)
            self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
            self._request: Any = compiled.create_infer_request()
        except _FAULTS as exc:
            raise EngineError(f"OpenVINO refuses {model_path.name}: {in_one_line(str(exc))}") from exc

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of `tiles`.

        Args:
            tiles: (N, 1, Z, Y, X) float32, clipped and scaled.

        Returns:
            (N, C, Z, Y, X) float32, an array of the caller's own.

        Raises:
            EngineError: if the engine is closed or the network takes no tiles of this shape.
        """
        if self._request is None:
            raise EngineError("this engine is closed")
        return np.concatenate([self._predict_one(tiles[i : i + 1]) for i in range(len(tiles))])

    def close(self) -> None:
        """Give the network's memory back; calling it again does nothing."""
        self._request = None

    def _predict_one(self, tile: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            self._request.infer([np.ascontiguousarray(tile, dtype=np.float32)])
        except _FAULTS as exc:
            raise EngineError(f"OpenVINO failed on a tile of shape {tile.shape}: {in_one_line(str(exc))}") from exc
        # The request owns its output and fills it again at the next call: hand out a copy.
        return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)


def _hint(precision: str, able: tuple[str, ...]) -> str:
    """What OpenVINO is told to compute floating-point layers in."""
    # What an int8 file leaves in float is rounded to bf16 where that is faster: it adds little to int8's own rounding.
    wanted = "bf16" if precision == "int8" else precision
    return wanted if wanted in able else "f32"


def import_openvino() -> Any:  # noqa: ANN401 - the package carries no types
    """The openvino package, without its telemetry.

    Raises:
        EngineError: if it is not installed.
    """
    try:
        return import_without_telemetry("openvino")
    except ImportError as exc:
        raise EngineError(f"OpenVINO cannot be loaded ({exc}). Install it: pip install openvino") from exc


def cpu_precisions(core: Any) -> tuple[str, ...]:  # noqa: ANN401 - openvino.Core carries no types
    """The precisions of this CPU, out of "f32", "bf16" and "f16"; "f32" is always there."""
    capabilities = set(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    names = {"bf16": "BF16", "f16": "FP16"}
    return ("f32", *(precision for precision, name in names.items() if name in capabilities))


def openvino_fast_precisions() -> tuple[str, ...]:
    """Those of "int8" and "bf16" that this CPU has instructions for, the fastest first.

    Raises:
        EngineError: if OpenVINO is not installed.
    """
    capabilities = set(import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return tuple(precision for precision, name in (("int8", "INT8"), ("bf16", "BF16")) if name in capabilities)
