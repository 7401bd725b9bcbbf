"""The part of covidseg that hospitals embed: a chest CT in, a label map and its measures out.

It needs numpy, nibabel, isal, scipy and one engine (OpenVINO or ONNX Runtime), never torch.
Importing this package imports none of them: each name is loaded when it is first used.

Example:
    >>> from covidseg_runtime import Segmenter, read_volume, write_label_map  # doctest: +SKIP
    >>> volume = read_volume(Path("scan.nii.gz"))                             # doctest: +SKIP
    >>> with Segmenter.open() as segmenter:                                   # doctest: +SKIP
    ...     segmentation = segmenter.segment(volume)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from covidseg_runtime.bundle import (
        ModelBundle,
        ModelFile,
        PreprocessingSpec,
        default_bundle_path,
        find_bundle,
        list_bundles,
        load_bundle,
    )
    from covidseg_runtime.engines import EngineInfo, available_engines, open_engine
    from covidseg_runtime.engines.engine import Engine
    from covidseg_runtime.errors import (
        BundleError,
        CovidsegError,
        EngineError,
        OutputError,
        SegmentationCancelled,
        SettingsError,
        VolumeError,
    )
    from covidseg_runtime.evaluation import LabelAgreement, compare_label_maps
    from covidseg_runtime.many_scans import FailedScan, ManyResult, SegmentedScan, segment_many
    from covidseg_runtime.measures import Measures, measure
    from covidseg_runtime.preview import write_preview
    from covidseg_runtime.report import build_report, describe_scan
    from covidseg_runtime.segment_settings import SegmentSettings
    from covidseg_runtime.segmenter import Segmentation, Segmenter
    from covidseg_runtime.tiling import TilePlan
    from covidseg_runtime.volume import Volume
    from covidseg_runtime.volume_files import read_label_map, read_volume, write_label_map, write_probability_map

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

_MODULE_OF = {
    "FailedScan": "many_scans",
    "ManyResult": "many_scans",
    "SegmentedScan": "many_scans",
    "segment_many": "many_scans",
    "BundleError": "errors",
    "CovidsegError": "errors",
    "Engine": "engines.engine",
    "EngineError": "errors",
    "EngineInfo": "engines",
    "LabelAgreement": "evaluation",
    "Measures": "measures",
    "ModelBundle": "bundle",
    "ModelFile": "bundle",
    "PreprocessingSpec": "bundle",
    "SegmentSettings": "segment_settings",
    "Segmentation": "segmenter",
    "SegmentationCancelled": "errors",
    "Segmenter": "segmenter",
    "OutputError": "errors",
    "SettingsError": "errors",
    "TilePlan": "tiling",
    "Volume": "volume",
    "VolumeError": "errors",
    "available_engines": "engines",
    "build_report": "report",
    "compare_label_maps": "evaluation",
    "default_bundle_path": "bundle",
    "describe_scan": "report",
    "find_bundle": "bundle",
    "list_bundles": "bundle",
    "load_bundle": "bundle",
    "measure": "measures",
    "open_engine": "engines",
    "read_label_map": "volume_files",
    "read_volume": "volume_files",
    "write_label_map": "volume_files",
    "write_probability_map": "volume_files",
    "write_preview": "preview",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module when it is first asked for."""
    module_name = _MODULE_OF.get(name)
    if module_name is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{module_name}"), name)
    # Kept, so that the second use costs a dictionary look-up.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
