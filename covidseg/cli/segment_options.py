"""The options of `covidseg segment`, and the segmenter they ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from covidseg_runtime import Segmenter
    from covidseg_runtime.spooling import Spool

# The one combination whose labels have the same bits over runs and numbers of threads.
_DETERMINISTIC: Mapping[str, Any] = MappingProxyType({"engine": "onnxruntime", "device": "cpu", "precision": "f32"})


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
    report: Path | None
    preview: Path | None
    truth: Path | None
    min_lesion_ml: float
    num_parts: int
    part_id: int
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


def open_segmenter(options: SegmentOptions, spool: Spool | None = None) -> Segmenter:
    """Load the model as asked for."""
    from covidseg_runtime import Segmenter, SegmentSettings

    return Segmenter.open(
        options.model,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        settings=SegmentSettings(min_lesion_ml=options.min_lesion_ml, quality=options.quality, spool=spool),
    )


def describe_choice(segmenter: Segmenter) -> str:
    """What computes, in a line: the choice of "auto" is never silent."""
    bundle, engine, settings = segmenter.bundle, segmenter.engine, segmenter.settings
    return f"{bundle.name} {bundle.version} on {engine.name} {engine.precision}, quality {settings.quality}"
