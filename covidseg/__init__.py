"""covidseg: infected lung on chest CT. Research use only, not a medical device.

This is the front door: the public names of `covidseg_runtime`, loaded when they are first used.

Example:
    >>> from covidseg import Segmenter, read_volume  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import covidseg_runtime

if TYPE_CHECKING:
    from covidseg_runtime import (
        BundleError,
        CovidsegError,
        Engine,
        EngineError,
        EngineInfo,
        FailedScan,
        LabelAgreement,
        ManyResult,
        Measures,
        ModelBundle,
        ModelFile,
        OutputError,
        PreprocessingSpec,
        Segmentation,
        SegmentationCancelled,
        SegmentedScan,
        Segmenter,
        SegmentSettings,
        SettingsError,
        TilePlan,
        Volume,
        VolumeError,
        available_engines,
        build_report,
        compare_label_maps,
        default_bundle_path,
        describe_scan,
        find_bundle,
        list_bundles,
        load_bundle,
        measure,
        open_engine,
        read_label_map,
        read_volume,
        segment_many,
        write_label_map,
        write_preview,
        write_probability_map,
    )

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "CovidsegError",
    "Engine",
    "EngineError",
    "EngineInfo",
    "FailedScan",
    "LabelAgreement",
    "ManyResult",
    "Measures",
    "ModelBundle",
    "ModelFile",
    "OutputError",
    "PreprocessingSpec",
    "SegmentSettings",
    "Segmentation",
    "SegmentationCancelled",
    "SegmentedScan",
    "Segmenter",
    "SettingsError",
    "TilePlan",
    "Volume",
    "VolumeError",
    "__version__",
    "available_engines",
    "build_report",
    "compare_label_maps",
    "default_bundle_path",
    "describe_scan",
    "find_bundle",
    "list_bundles",
    "load_bundle",
    "measure",
    "open_engine",
    "read_label_map",
    "read_volume",
    "segment_many",
    "write_label_map",
    "write_preview",
    "write_probability_map",
]


def __getattr__(name: str) -> object:
    """Fetch a public name from the runtime when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(covidseg_runtime, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
