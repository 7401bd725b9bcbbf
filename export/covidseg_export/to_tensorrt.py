"""ONNX → TensorRT plan, in the user's cache. Needs neither torch nor onnx: a machine with a GPU builds its own.

One path for TensorRT 10.12 to 11 and TensorRT for RTX: networks are strongly typed, so a layer computes in what the
graph says, and the fp16 and int8 plans come from graphs of their own.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from covidseg_runtime.engines.engine import in_one_line
from covidseg_runtime.engines.plan_cache import (
    GpuIdentity,
    PlanKey,
    TensorRtIdentity,
    is_built,
    lock_plan,
    make_plan_folder,
    plan_path,
    read_private_file,
    store_plan,
    write_private_file,
)
from covidseg_runtime.engines.tensorrt_engine import (
    error_collector,
    gpu_identity,
    import_tensorrt,
    last_error,
    select_gpu,
)
from covidseg_runtime.errors import EngineError, SettingsError
from covidseg_runtime.onnx_guard import refuse_unsafe_model

Progress = Callable[[str, int, int], None]
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]

WAITING = "Waiting for another process that builds the same plan"
_LEVELS = range(6)


@dataclass(frozen=True)
class BuilderOptions:
    """How a plan is built.

    Attributes:
        opt_batch: Tiles a call that the plan is tuned for.
        max_batch: The most tiles a call takes.
        workspace_mib: The most scratch memory a layer may use; None leaves it to TensorRT.
        tf32: Let fp32 layers compute with 10 bits of the mantissa.
        version_compatible: Let later versions of TensorRT open the plan; slower, and it brings its own runtime along.
        hardware_compatibility: Which GPUs the plan runs on beside the one it is built for.
        timing_cache: Keep the measured times of kernels for the next build.
        optimization_level: How long TensorRT searches for kernels, from 0 to 5.
    """

    opt_batch: int = 1
    max_batch: int = 4
    workspace_mib: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    timing_cache: bool = True
    optimization_level: int = 3

    def __post_init__(self) -> None:
        """Refuse what no plan can be built with."""
        if not 1 <= self.opt_batch <= self.max_batch:
            raise SettingsError(
                f"opt_batch is {self.opt_batch} and max_batch {self.max_batch}: expected 1 ≤ opt_batch ≤ max_batch"
            )
        if self.optimization_level not in _LEVELS:
            raise SettingsError(f"optimization_level is {self.optimization_level}: expected 0 to {_LEVELS[-1]}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise SettingsError(f"workspace_mib is {self.workspace_mib}: expected a positive number, or none")

    def refuse_unfit(self, tensorrt: TensorRtIdentity) -> None:
        """Refuse what this TensorRT would pass over in silence.

        Raises:
            SettingsError: for compatibility options with TensorRT for RTX, which has none of them.
        """
        if tensorrt.flavour == "tensorrt_rtx" and (self.version_compatible or self.hardware_compatibility != "none"):
            raise SettingsError(
                "tensorrt_rtx has neither version_compatible nor hardware_compatibility: leave them out"
            )


@dataclass(frozen=True)
class ParsedNetwork:
    """A network as TensorRT's parser read it.

    Attributes:
        name: Its file's name.
        builder: What made the network and builds it.
        definition: The network.
        tile_shape: (z, y, x) of its input.
        precision: What it computes in: "f32", "f16" or "int8".
        logger: Where TensorRT's errors are.
    """

    name: str
    builder: Any
    definition: Any
    tile_shape: tuple[int, int, int]
    precision: str
    logger: Any


def build_plan(
    model_path: Path,
    options: BuilderOptions,
    *,
    gpu: GpuIdentity | None = None,
    cuda_device: int = 0,
    on_progress: Progress | None = None,
) -> Path:
    """Build the plan of an ONNX file for one GPU, unless the cache has it.

    Args:
        model_path: An ONNX file, fp32, fp16 or int8, with a fixed tile and a free batch.
        options: How it is built.
        gpu: The GPU as the plan's key shall name it; None asks the driver for `cuda_device`.
        cuda_device: Number of the GPU that the plan is built on.
        on_progress: Called with (phase, steps done, steps in total), from any thread. What it raises cancels the
            build and comes back out of this function.

    Returns:
        The plan in the cache.

    Raises:
        EngineError: if TensorRT or the GPU is missing, or TensorRT refuses the network.
        BundleError: if the file is no self-contained ONNX model.
        SettingsError: if this TensorRT has no such option.
        OutputError: if the cache cannot be written.
    """
    installed = import_tensorrt()
    options.refuse_unfit(installed.identity)
    if gpu is None:
        gpu = gpu_identity(cuda_device)
        select_gpu(cuda_device)
    refuse_unsafe_model(model_path)
    model = model_path.read_bytes()
    network = parse_network(installed.module, model, model_path.name)
    key = plan_key(sha256(model).hexdigest(), network, installed.identity, gpu, options)
    config = configure(installed.module, network, options)
    report = on_progress or _no_progress
    make_plan_folder()
    with lock_plan(plan_path(key), lambda: report(WAITING, 0, 1)):
        if is_built(key):  # by an earlier run, or by the process that was waited for
            return plan_path(key)
        timings = timing_path(key) if options.timing_cache else None
        plan = _serialise(installed.module, network, config, timings, report)
        return store_plan(plan, key, network.precision).path


def plan_key(
    model_sha256: str,
    network: ParsedNetwork,
    tensorrt: TensorRtIdentity,
    gpu: GpuIdentity,
    options: BuilderOptions,
) -> PlanKey:
    """What the plan of a network will depend on."""
    flags = asdict(options)
    batch = (flags.pop("opt_batch"), flags.pop("max_batch"))
    return PlanKey(model_sha256, tensorrt, gpu, network.tile_shape, batch, flags)


def parse_network(tensorrt: Any, model: bytes, name: str) -> ParsedNetwork:  # noqa: ANN401 - carries no types
    """Read an ONNX model as a strongly typed network.

    Args:
        tensorrt: The package.
        model: The file's bytes.
        name: The file's name, for errors.

    Raises:
        EngineError: if TensorRT refuses it, or its input or output is not a bundle's.
    """
    logger = error_collector(tensorrt)
    builder = tensorrt.Builder(logger)
    # Asked for by name up to 10.16; TensorRT 11 knows nothing else.
    strongly_typed = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    definition = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = tensorrt.OnnxParser(definition, logger)
    if not parser.parse(model):
        raise EngineError(f"TensorRT refuses {name}: {_first_error(parser, logger)}")
    return ParsedNetwork(
        name=name,
        builder=builder,
        definition=definition,
        tile_shape=_tile_shape(tensorrt, definition, name),
        precision=_precision(tensorrt, definition),
        logger=logger,
    )


def _first_error(parser: Any, logger: Any) -> str:  # noqa: ANN401
    if not parser.num_errors:
        return last_error(logger)
    error = parser.get_error(0)
    place = f" (at {error.node_operator()} {error.node_name()})" if error.node_operator() else ""
    return in_one_line(error.desc()) + place


def _tile_shape(tensorrt: Any, definition: Any, name: str) -> tuple[int, int, int]:  # noqa: ANN401
    """(z, y, x) of the one input, (N, 1, Z, Y, X) float32 with a free N."""
    tensors = [definition.get_input(index) for index in range(definition.num_inputs)]
    tensors += [definition.get_output(index) for index in range(definition.num_outputs)]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if (
        (definition.num_inputs, definition.num_outputs) != (1, 1)
        or any(len(shape) != 5 or shape[0] != -1 or min(shape[1:]) < 1 for shape in shapes)
        or any(tensor.dtype != tensorrt.float32 for tensor in tensors)
    ):
        raise EngineError(
            f"{name} has inputs and outputs of shapes {shapes}: expected one input (N, 1, Z, Y, X) and one output "
            "(N, C, Z, Y, X), both float32, with a free N alone"
        )
    _, _, z, y, x = shapes[0]
    return z, y, x


def _precision(tensorrt: Any, definition: Any) -> str:  # noqa: ANN401
    layers = [definition.get_layer(index) for index in range(definition.num_layers)]
    if any(layer.type == tensorrt.LayerType.QUANTIZE for layer in layers):
        return "int8"
    dtypes = {layer.get_output(index).dtype for layer in layers for index in range(layer.num_outputs)}
    return "f16" if tensorrt.float16 in dtypes else "f32"


def configure(tensorrt: Any, network: ParsedNetwork, options: BuilderOptions) -> Any:  # noqa: ANN401
    """The builder's settings (tensorrt.IBuilderConfig), its optimisation profile among them."""
    config = network.builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    flags = tensorrt.BuilderFlag
    if not options.tf32:
        config.clear_flag(flags.TF32)
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if hasattr(flags, "REQUIRE_USER_ALLOCATION"):  # TensorRT for RTX: without it no CUDA graph can be recorded
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.upper()
        config.hardware_compatibility_level = getattr(tensorrt.HardwareCompatibilityLevel, level)
    config.add_optimization_profile(batch_profile(network, options))
    return config


def batch_profile(network: ParsedNetwork, options: BuilderOptions) -> Any:  # noqa: ANN401
    """The range of shapes (tensorrt.IOptimizationProfile): a free batch of tiles of one shape."""
    tiles = network.definition.get_input(0)
    fixed = tuple(tiles.shape)[1:]
    profile = network.builder.create_optimization_profile()
    profile.set_shape(tiles.name, (1, *fixed), (options.opt_batch, *fixed), (options.max_batch, *fixed))
    return profile


def timing_path(key: PlanKey) -> Path:
    """Where measured times of kernels lie: they hold for one TensorRT on one GPU, whatever the network."""
    of_whom = json.dumps([asdict(key.tensorrt), asdict(key.gpu)])
    return plan_path(key).with_name(f"{sha256(of_whom.encode()).hexdigest()[:32]}.timing")


def _serialise(
    tensorrt: Any,  # noqa: ANN401
    network: ParsedNetwork,
    config: Any,  # noqa: ANN401
    timings: Path | None,
    on_progress: Progress,
) -> bytes:
    """Build; `timings` is the file of the timing cache, if one is kept."""
    monitor = _progress_monitor(tensorrt, on_progress)
    config.progress_monitor = monitor
    if timings is not None:
        config.set_timing_cache(config.create_timing_cache(_known_timings(timings)), ignore_mismatch=False)
    plan = network.builder.build_serialized_network(network.definition, config)
    if monitor.cancelled_by is not None:
        raise monitor.cancelled_by
    if plan is None:
        raise EngineError(f"TensorRT cannot build a plan of {network.name}: {last_error(network.logger)}")
    if timings is not None:
        write_private_file(timings, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _known_timings(path: Path) -> bytes:
    try:
        return read_private_file(path)
    except (OSError, EngineError):
        return b""  # an empty cache: this build measures anew


def _progress_monitor(tensorrt: Any, on_progress: Progress) -> Any:  # noqa: ANN401 - tensorrt.IProgressMonitor
    """A monitor that hands phases on, and whose ``cancelled_by`` is what `on_progress` raised."""

    class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.cancelled_by: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            # Nothing may be raised into TensorRT, not even a KeyboardInterrupt; False ends the build.
            if self.cancelled_by is None:
                try:
                    on_progress(phase, step + 1, self._steps.get(phase, step + 1))
                except BaseException as exc:
                    self.cancelled_by = exc
            return self.cancelled_by is None

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()


def _no_progress(phase: str, done: int, total: int) -> None:
    """What is called when nobody asked."""
