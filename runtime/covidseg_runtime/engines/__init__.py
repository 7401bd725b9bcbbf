"""Engines run a network on tiles. `open_engine` chooses one, `available_engines` lists them.

The rule: `device="cuda[:n]"` is TensorRT on that GPU where it is installed and a plan was built, or
ONNX Runtime. `device="cpu"` is OpenVINO, or ONNX Runtime where OpenVINO is not installed.
`device="auto"` is the first GPU if TensorRT or ONNX Runtime can use one, otherwise the CPU. Naming an
engine leaves only that engine's candidates. A precision leaves those that compute in it: bf16 is
OpenVINO's, by rounding the float32 file; f16 and int8 have files of their own in the bundle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import MappingProxyType
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
    openvino_fast_precisions,
)
from covidseg_runtime.engines.tensorrt_engine import FLAVOURS, InstalledTensorRt, TensorRtEngine, import_tensorrt
from covidseg_runtime.errors import EngineError

__all__ = [
    "ENGINES",
    "FILE_OF_PRECISION",
    "PRECISIONS",
    "Engine",
    "EngineChoice",
    "EngineInfo",
    "available_engines",
    "engine_candidates",
    "fastest_precision",
    "open_choice",
    "open_engine",
]

ENGINES = ("auto", "openvino", "onnxruntime", "tensorrt")
# What an engine computes in -> the precision of the bundle's file that it reads.
FILE_OF_PRECISION: Mapping[str, str] = MappingProxyType({"f32": "fp32", "bf16": "fp32", "f16": "fp16", "int8": "int8"})
PRECISIONS = tuple(FILE_OF_PRECISION)
_PRECISIONS_OF_ENGINE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "openvino": ("f32", "bf16", "f16", "int8"),
        "onnxruntime": ("f32", "f16", "int8"),
        "tensorrt": ("f32", "f16", "int8"),
    }
)

_DEVICE = re.compile(r"auto|cpu|cuda(?::(\d{1,3}))?")


@dataclass(frozen=True)
class EngineInfo:
    """What one engine can do on this machine.

    Attributes:
        name: "openvino", "onnxruntime" or "tensorrt".
        version: The installed version; None where it is not installed.
        devices: The devices it can be asked for: "cpu", "cuda". Whether a GPU's driver works is
            only known when the engine is opened.
        precisions: The precisions it computes in, if the bundle has the file; the first needs no asking.
        problem: Why it cannot be used; None where it can.
    """

    name: str
    version: str | None
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    problem: str | None = None


@dataclass(frozen=True)
class EngineChoice:
    """One engine in one precision on one device. `cuda_device` is None for the CPU."""

    name: str
    cuda_device: int | None = None
    precision: str = "f32"

    @property
    def device(self) -> str:
        """The device as it is asked for: "cpu" or "cuda:n"."""
        return "cpu" if self.cuda_device is None else f"cuda:{self.cuda_device}"


def open_engine(
    bundle: ModelBundle,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Engine:
    """Open the network of `bundle`.

    Args:
        bundle: A bundle that `load_bundle` verified.
        engine: "auto", "openvino", "onnxruntime" or "tensorrt".
        device: "auto", "cpu", "cuda" (the first GPU) or "cuda:n".
        precision: "f32", "bf16", "f16" or "int8"; "auto" is the fastest that this machine has and that passed the
            bundle's comparison with torch, otherwise "f32".
        threads: Number of CPU threads; None leaves the choice to the engine.

    Raises:
        EngineError: if no engine of this machine can do what was asked for.
        BundleError: if the bundle has no network of that precision.
    """
    problems: list[EngineError] = []
    candidates = engine_candidates(engine, device, "f32" if precision == "auto" else precision)
    for choice in candidates:
        if precision == "auto":
            choice = replace(choice, precision=fastest_precision(bundle, choice))
        try:
            return open_choice(bundle, choice, threads=threads)
        except EngineError as exc:
            problems.append(exc)
    if len(problems) == 1:
        raise problems[0]
    raise EngineError("no engine can be used: " + "; ".join(str(exc) for exc in problems)) from (problems[-1])


def engine_candidates(engine: str, device: str, precision: str = "f32") -> tuple[EngineChoice, ...]:
    """The engines to try for `engine`, `device` and `precision`, the best first; never empty.

    Raises:
        EngineError: if a name is unknown, or if `engine` cannot run on `device` or in `precision`.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"precision {precision!r} is unknown: expected one of {', '.join(PRECISIONS)}")
    if engine not in ENGINES:
        raise EngineError(f"engine {engine!r} is unknown: expected one of {', '.join(ENGINES)}")
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise EngineError(f"device {device!r} is unknown: expected auto, cpu, cuda or cuda:n")
    choices: list[EngineChoice] = []
    if device != "cpu":
        choices += _gpu_choices(engine, device, int(match[1] or 0))
    if not device.startswith("cuda"):
        choices += [EngineChoice("openvino"), EngineChoice("onnxruntime")]
    fitting = tuple(choice for choice in choices if engine in ("auto", choice.name))
    if not fitting:
        raise EngineError(f"engine {engine} does not run on {device}: use another engine, or --device auto")
    exact = tuple(
        replace(choice, precision=precision) for choice in fitting if precision in _PRECISIONS_OF_ENGINE[choice.name]
    )
    if not exact:
        able = [name for name, precisions in _PRECISIONS_OF_ENGINE.items() if precision in precisions]
        names = ", ".join(dict.fromkeys(choice.name for choice in fitting))
        raise EngineError(f"{names} does not compute in {precision} on {device}; {', '.join(able)} may on the CPU")
    return exact


def available_engines() -> list[EngineInfo]:
    """Every engine covidseg knows, with what it can do here; no network is opened."""
    return [
        _info("openvino", import_openvino, _describe_openvino),
        _info("onnxruntime", import_onnxruntime, _describe_onnxruntime),
        _info("tensorrt", import_tensorrt, _describe_tensorrt),
    ]


def fastest_precision(bundle: ModelBundle, choice: EngineChoice) -> str:
    """The fastest precision of an engine on its device, out of those that passed the bundle's comparison with torch.

    int8 needs a CPU with instructions for it; without them it is no faster. Half precision on a GPU is compared where
    its file is: on the CPU of the exporter.
    """
    if choice.name == "openvino":
        try:
            able = openvino_fast_precisions()
        except EngineError:
            return "f32"
        return next((one for one in able if _is_usable(bundle, "openvino", one)), "f32")
    if choice.cuda_device is not None and _is_usable(bundle, "onnxruntime", "f16"):
        return "f16"
    return "f32"


def _is_usable(bundle: ModelBundle, engine: str, precision: str) -> bool:
    return bundle.has_file(FILE_OF_PRECISION[precision]) and bundle.has_passed(engine, precision)


def open_choice(bundle: ModelBundle, choice: EngineChoice, *, threads: int | None = None) -> Engine:
    """Open the network of `bundle` exactly as chosen.

    Raises:
        EngineError: if the engine is missing or cannot do it on this machine.
        BundleError: if the bundle has no network of that precision.
    """
    path = bundle.model_path(FILE_OF_PRECISION[choice.precision])
    if choice.name == "tensorrt":
        return TensorRtEngine(path, cuda_device=choice.cuda_device or 0)
    if choice.name == "openvino":
        any_tile = bundle.tile_plan.fit is not None
        return OpenVinoEngine(path, precision=choice.precision, threads=threads, any_tile=any_tile)
    return OnnxRuntimeEngine(path, threads=threads, cuda_device=choice.cuda_device, precision=choice.precision)


def _gpu_choices(engine: str, device: str, number: int) -> list[EngineChoice]:
    """The engines of one GPU; where none was asked for by name, those that are installed for GPUs."""
    choices = []
    if engine == "tensorrt" or any(find_spec(flavour) for flavour in FLAVOURS):
        choices.append(EngineChoice("tensorrt", number))
    if device != "auto" or (engine in ("auto", "onnxruntime") and _has_cuda_build()):
        choices.append(EngineChoice("onnxruntime", number))
    return choices


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
    return EngineInfo(
        "openvino", version, ("cpu",), tuple(dict.fromkeys((*cpu_precisions(openvino.Core()), "f16", "int8")))
    )


def _describe_onnxruntime(onnxruntime: Any) -> EngineInfo:  # noqa: ANN401 - carries no types
    has_cuda = CUDA_PROVIDER in onnxruntime.get_available_providers()
    devices = ("cpu", "cuda") if has_cuda else ("cpu",)
    return EngineInfo("onnxruntime", str(onnxruntime.__version__), devices, _PRECISIONS_OF_ENGINE["onnxruntime"])


def _describe_tensorrt(installed: InstalledTensorRt) -> EngineInfo:
    return EngineInfo("tensorrt", installed.identity.version, ("cuda",), _PRECISIONS_OF_ENGINE["tensorrt"])
