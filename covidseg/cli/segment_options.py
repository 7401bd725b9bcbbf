"""The options of `covidseg segment`, and the segmenter they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from covidseg_runtime import Segmenter

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


def open_segmenter(options: SegmentOptions) -> Segmenter:
    """Load the model as asked for."""
    from covidseg_runtime import Segmenter, SegmentSettings

    return Segmenter.open(
        options.model,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        settings=SegmentSettings(min_lesion_ml=options.min_lesion_ml, quality=options.quality),
    )


def describe_choice(segmenter: Segmenter) -> str:
    """What computes, in a line: the choice of "auto" is never silent."""
    bundle, engine, settings = segmenter.bundle, segmenter.engine, segmenter.settings
    return f"{bundle.name} {bundle.version} on {engine.name} {engine.precision}, quality {settings.quality}"
