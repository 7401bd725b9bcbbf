"""Engines run a network on tiles. `open_engine` chooses one, `available_engines` lists them.

The rule: `device="cuda[:n]"` is ONNX Runtime on that GPU. `device="cpu"` is OpenVINO, or ONNX
Runtime where OpenVINO is not installed. `device="auto"` is the first GPU if ONNX Runtime can use
one, otherwise the CPU. Naming an engine leaves only that engine's candidates.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.engines.onnxruntime_engine import (
    CUDA_PROVIDER,
    OnnxRuntimeEngine,
    import_onnxruntime,
)
from covidseg_runtime.engines.openvino_engine import (
    OpenVinoEngine,
    cpu_precisions,
    import_openvino,
)
from covidseg_runtime.errors import EngineError

__all__ = [
    "ENGINES",
    "Engine",
    "EngineChoice",
    "EngineInfo",
    "available_engines",
    "engine_candidates",
    "open_engine",
]

ENGINES = ("auto", "openvino", "onnxruntime")

_DEVICE = re.compile(r"auto|cpu|cuda(?::(\d{1,3}))?")


@dataclass(frozen=True)
class EngineInfo:
    """What one engine can do on this machine.

    Attributes:
        name: "openvino" or "onnxruntime".
        version: The installed version; None where it is not installed.
        devices: The devices it can be asked for: "cpu", "cuda". Whether a GPU's driver works is
            only known when the engine is opened.
        precisions: The precisions it computes in; the first is the one that is used.
        problem: Why it cannot be used; None where it can.
    """

    name: str
    version: str | None
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    problem: str | None = None


@dataclass(frozen=True)
class EngineChoice:
    """One engine on one device. `cuda_device` is None for the CPU."""

    name: str
    cuda_device: int | None = None

    @property
    def device(self) -> str:
        """The device as it is asked for: "cpu" or "cuda:n"."""
        return "cpu" if self.cuda_device is None else f"cuda:{self.cuda_device}"


def open_engine(bundle: ModelBundle, *, engine: str = "auto", device: str = "auto") -> Engine:
    """Open the network of `bundle` in float32.

    Args:
        bundle: A bundle that `load_bundle` verified.
        engine: "auto", "openvino" or "onnxruntime".
        device: "auto", "cpu", "cuda" (the first GPU) or "cuda:n".

    Raises:
        EngineError: if no engine of this machine can do what was asked for.
        BundleError: if the bundle has no float32 network.
    """
    problems: list[EngineError] = []
    for choice in engine_candidates(engine, device):
        try:
            return _open(bundle, choice)
        except EngineError as exc:
            problems.append(exc)
    if len(problems) == 1:
        raise problems[0]
    raise EngineError("no engine can be used: " + "; ".join(str(exc) for exc in problems)) from (problems[-1])


def engine_candidates(engine: str, device: str) -> tuple[EngineChoice, ...]:
    """The engines to try for `engine` and `device`, the best first; never empty.

    Raises:
        EngineError: if a name is unknown, or if `engine` cannot run on `device`.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine {engine!r} is unknown: expected one of {', '.join(ENGINES)}")
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise EngineError(f"device {device!r} is unknown: expected auto, cpu, cuda or cuda:n")
    choices: list[EngineChoice] = []
    if device.startswith("cuda"):
        choices.append(EngineChoice("onnxruntime", int(match[1] or 0)))
    elif device == "auto" and engine != "openvino" and _has_cuda_build():
        choices.append(EngineChoice("onnxruntime", 0))
    if not device.startswith("cuda"):
        choices += [EngineChoice("openvino"), EngineChoice("onnxruntime")]
    fitting = tuple(choice for choice in choices if engine in ("auto", choice.name))
    if not fitting:
        raise EngineError(f"engine {engine} does not run on {device}: use --engine onnxruntime")
    return fitting


def available_engines() -> list[EngineInfo]:
    """Every engine covidseg knows, with what it can do here; no network is opened."""
    return [
        _info("openvino", import_openvino, _describe_openvino),
        _info("onnxruntime", import_onnxruntime, _describe_onnxruntime),
    ]


def _open(bundle: ModelBundle, choice: EngineChoice) -> Engine:
    path = bundle.model_path("fp32")
    if choice.name == "openvino":
        return OpenVinoEngine(path)
    return OnnxRuntimeEngine(path, cuda_device=choice.cuda_device)


def _has_cuda_build() -> bool:
    try:
        return CUDA_PROVIDER in import_onnxruntime().get_available_providers()
    except EngineError:
        return False


def _info(name: str, load: Callable[[], Any], describe: Callable[[Any], EngineInfo]) -> EngineInfo:
    try:
        package = load()
    except EngineError as exc:
        return EngineInfo(name, None, (), (), str(exc))
    return describe(package)


def _describe_openvino(openvino: Any) -> EngineInfo:  # noqa: ANN401 - carries no types
    version = str(openvino.__version__).split("-")[0]
    return EngineInfo("openvino", version, ("cpu",), cpu_precisions(openvino.Core()))


def _describe_onnxruntime(onnxruntime: Any) -> EngineInfo:  # noqa: ANN401 - carries no types
    has_cuda = CUDA_PROVIDER in onnxruntime.get_available_providers()
    devices = ("cpu", "cuda") if has_cuda else ("cpu",)
    return EngineInfo("onnxruntime", str(onnxruntime.__version__), devices, ("f32",))
