"""The options of `covidseg segment`, and the segmenter they ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from covidseg_runtime.spooling import Spool
    from covidseg_runtime.wanted_segmenter import WantedSegmenter

OUTPUT_TYPES = ("nifti", "dicom")
DICOM_OBJECTS = ("seg", "sr", "sc", "pdf")
# The one combination whose labels have the same bits over runs and numbers of threads.
_DETERMINISTIC: Mapping[str, Any] = MappingProxyType({"engine": "onnxruntime", "device": "cpu", "precision": "f32"})


def parse_window(value: str | Sequence[float]) -> tuple[float, float]:
    """LOW,HIGH in HU, as text or, in the configuration file, as an array of two numbers.

    Raises:
        click.BadParameter: if it is no window of a CT.
    """
    from covidseg_runtime.errors import SettingsError
    from covidseg_runtime.intensity import judge_window

    try:
        low, high = map(float, value.split(",") if isinstance(value, str) else value)
        judge_window((low, high))
    except SettingsError as error:
        raise click.BadParameter(str(error)) from error
    except (TypeError, ValueError) as error:
        raise click.BadParameter(
            f"{value!r} is no window: two numbers LOW,HIGH in HU are expected, as in -1250,250."
        ) from error
    return low, high


def parse_output_type(value: str | Sequence[str]) -> tuple[str, ...]:
    """Kinds of output; see `_parse_list`."""
    return _parse_list(value, OUTPUT_TYPES)


def parse_objects(value: str | Sequence[str]) -> tuple[str, ...]:
    """Kinds of DICOM objects; see `_parse_list`."""
    return _parse_list(value, DICOM_OBJECTS)


def dicom_object_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options `--objects` and `--lungs`."""
    objects = click.option(
        "--objects",
        metavar="LIST",
        default="seg,sr,sc",
        show_default=True,
        type=parse_objects,
        help="As DICOM: segmentation, structured report, picture, and pdf, a page for people.",
    )
    lungs = click.option("--lungs", is_flag=True, help="As DICOM: the lungs as segments beside the infection.")
    return objects(lungs(command))


def ray_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a cluster, beginning with `--ray`."""
    address = click.option(
        "--ray",
        metavar="ADDRESS",
        help="Segment DIR on a Ray cluster (extra `ray`): local, auto, host:port or ray://host:port.",
    )
    actors = click.option(
        "--ray-actors",
        metavar="N",
        type=click.IntRange(min=1),
        help="Workers on it. [default: one a GPU, or one a group of cores]",
    )
    cores = click.option(
        "--cores-per-actor",
        metavar="N",
        type=click.IntRange(min=1),
        help="CPU cores, and threads, of each. [default: 4, or all of a smaller machine]",
    )
    wait = click.option(
        "--ray-wait",
        metavar="S",
        default=60.0,
        show_default=True,
        type=click.FloatRange(min=0, min_open=True),
        help="Give up after S seconds in which no worker has a place.",
    )
    return address(actors(cores(wait(command))))


def _parse_list(value: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Words as text parted by commas or, in the configuration file, as an array.

    Raises:
        click.BadParameter: if one is unknown or none is given.
    """
    names = tuple(name.strip() for name in (value.split(",") if isinstance(value, str) else value))
    if not names or set(names) - set(known):
        raise click.BadParameter(f"{value!r} is not what is expected: any of {', '.join(known)}, parted by commas.")
    return names


@dataclass(frozen=True)
class SegmentOptions:
    """The options of `covidseg segment` as click hands them over."""

    output: Path | None
    model: str | None
    device: str
    engine: str
    precision: str
    quality: str
    threads: int | None
    max_memory: int | None
    deterministic: bool
    output_type: tuple[str, ...]
    series: str | None
    shear_tilt: bool
    objects: tuple[str, ...]
    lungs: bool
    report: Path | None
    preview: Path | None
    probability: Path | None
    truth: Path | None
    window: tuple[float, float] | None
    min_lesion_ml: float
    num_parts: int
    part_id: int
    ray: str | None
    ray_actors: int | None
    cores_per_actor: int | None
    ray_wait: float
    overwrite: bool
    json: bool


def resolve_deterministic(options: SegmentOptions) -> SegmentOptions:
    """Put what `--deterministic` stands for in place of "auto".

    Raises:
        click.UsageError: if something else was asked for by name.
    """
    if not options.deterministic:
        return options
    for name, value in _DETERMINISTIC.items():
        given = getattr(options, name)
        if given not in ("auto", value):
            raise click.UsageError(f"--deterministic computes with --{name} {value}, not with --{name} {given}")
    return replace(options, **_DETERMINISTIC)


def plan_spool(options: SegmentOptions, folder: Path) -> Spool:
    """Long scans lie in working files beside the results; with --max-memory all do."""
    from covidseg_runtime.spooling import Spool

    return Spool(folder) if options.max_memory is None else Spool(folder, from_mib=0)


def within_memory(
    options: SegmentOptions, on_progress: Callable[[int, int], None] | None
) -> Callable[[int, int], None] | None:
    """Progress that ends the run once it has taken more memory than --max-memory."""
    most = options.max_memory
    if most is None:
        return on_progress

    def report_or_stop(done: int, total: int) -> None:
        from covidseg_runtime import EngineError
        from covidseg_runtime.process_memory import peak_memory_mib

        taken = peak_memory_mib() or 0.0
        if taken > most:
            raise EngineError(
                f"this run took {taken:.0f} MiB, more than --max-memory {most}: give it more, another --precision, or "
                "a model with smaller tiles"
            )
        if on_progress is not None:
            on_progress(done, total)

    return report_or_stop


def wanted_segmenter(options: SegmentOptions, spool: Spool | None = None) -> WantedSegmenter:
    """The segmenter as asked for; `open` loads it."""
    from covidseg_runtime import SegmentSettings
    from covidseg_runtime.wanted_segmenter import WantedSegmenter

    return WantedSegmenter(
        options.model,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        settings=SegmentSettings(
            min_lesion_ml=options.min_lesion_ml,
            quality=options.quality,
            spool=spool,
            keep_probability=options.probability is not None,
            window_hu=options.window,
        ),
    )
