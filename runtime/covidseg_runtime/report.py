"""The report on one segmentation: everything needed to read it, or to repeat it, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

import covidseg_runtime
from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.engines.engine import Engine, describe_engine
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_range import volume_range

if TYPE_CHECKING:
    from covidseg_runtime.segmenter import Segmentation, Segmenter

REPORT_SCHEMA_VERSION = 1
NOTICE = "Research use only. Not a medical device."
LIMITS = (
    "Infection means opacity in the lung. Opacities are not specific to COVID-19: other "
    "pneumonias, oedema, haemorrhage, fibrosis and tumours look alike. This is no diagnosis."
)


def describe_scan(name: str, volume: Volume) -> dict[str, Any]:
    """What the report says about the scan.

    Args:
        name: The file's name without its folder, which may name a patient or a person; of DICOM the series' UID.
        volume: The scan as it was read.
    """
    return {
        "file": name,
        "shape": list(volume.shape),
        "spacing_mm": list(volume.spacing_mm),
        "orientation": volume.orientation,
        "window_hu": None if volume.window_hu is None else list(volume.window_hu),
    }


def build_report(
    segmentation: Segmentation, bundle: ModelBundle, engine: Engine, source: Mapping[str, Any]
) -> dict[str, Any]:
    """Gather the report; it holds only what JSON knows, and null for numbers without meaning.

    Args:
        segmentation: The result.
        bundle: The model that made it.
        engine: The engine that ran it.
        source: What `describe_scan` gave.
    """
    report = {
        "schema_version": REPORT_SCHEMA_VERSION,
        "notice": NOTICE,
        "limits": LIMITS,
        "software": {"name": "covidseg", "version": covidseg_runtime.__version__},
        "model": {
            "name": bundle.name,
            "version": bundle.version,
            "files": {file.name: file.sha256 for file in bundle.files},
        },
        "engine": {
            **describe_engine(engine),
            "quality": segmentation.quality,
            "step": segmentation.plan.step,
            "tile_shape": segmentation.plan.tile_shape,
            "tiles": segmentation.tiles,
        },
        "scan": source,
        "labels": {str(value): meaning for value, meaning in bundle.labels.items()},
        "box": {
            "rule": segmentation.box.rule,
            "orientation": bundle.preprocessing.orientation,
            "start": segmentation.box.start,
            "stop": segmentation.box.stop,
        },
        "measures": asdict(segmentation.measures),
        "uncertainty": _describe_uncertainty(segmentation, bundle),
        "warnings": segmentation.warnings,
        "timings_s": {step: round(seconds, 3) for step, seconds in segmentation.timings_s.items()},
    }
    return {key: plain_json(item) for key, item in report.items()}


def describe_choice(segmenter: Segmenter) -> str:
    """What computes, in a line: the choice of "auto" is never silent."""
    bundle, engine, plan = segmenter.bundle, describe_engine(segmenter.engine), segmenter.tile_plan
    threads = "threads auto" if engine["threads"] is None else f"threads {engine['threads']}"
    facts = (engine["provider"], engine["device"], threads, f"batch {engine['batch']}")
    is_fitted = plan.fit is not None and segmenter.engine.any_tile
    tiles = "fitted to the lungs" if is_fitted else "x".join(map(str, plan.tile_shape))
    return (
        f"{bundle.name} {bundle.version} on {engine['name']} {engine['precision']} "
        f"({', '.join(str(fact) for fact in facts if fact is not None)}), quality {segmenter.settings.quality} "
        f"(step {plan.step:g}, tiles {tiles})"
    )


def _describe_uncertainty(segmentation: Segmentation, bundle: ModelBundle) -> dict[str, Any]:
    volume = segmentation.measures.infection_volume_ml.whole
    found = None if volume is None else volume_range(bundle, volume)
    return {
        "infection_volume_ml": None if found is None else asdict(found),
        "probability": asdict(bundle.calibration),
    }


def plain_json(value: object) -> Any:  # noqa: ANN401 - JSON is a recursive type
    """`value` as dict, list, str, int, float, bool and None; NaN and infinities become None.

    Raises:
        TypeError: if JSON cannot hold it.
    """
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a report cannot hold {type(value).__name__}: {value!r}")
