"""A label map and a report that were written earlier: read, and held against the scan that they are said to be of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.bundle import LABELS
from covidseg_runtime.errors import VolumeError
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.pages.report_shape import find_fault
from covidseg_runtime.report import REPORT_SCHEMA_VERSION
from covidseg_runtime.same_grid import on_grid_of
from covidseg_runtime.spooling import planes
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import read_label_map

_SECTIONS = ("software", "model", "engine", "scan", "measures", "uncertainty", "warnings", "timings_s")
_SPACING_MM = 1e-3
# Volumes are written with three digits.
_SHARE, _ML = 1e-3, 2e-3


@dataclass(frozen=True)
class SavedReport:
    """A report as `covidseg segment` wrote it.

    Attributes:
        content: The JSON.
        name: The file's name, for messages.
    """

    content: Mapping[str, Any]
    name: str

    @property
    def window_hu(self) -> tuple[float, float] | None:
        """The window whose grey levels the scan was given as."""
        window = self.content["scan"].get("window_hu")
        return None if window is None else (float(window[0]), float(window[1]))


def read_report(path: Path) -> SavedReport:
    """Read a report.

    Raises:
        VolumeError: If the file is not one that this covidseg knows.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # JSON, and Unicode within it
        raise VolumeError(f"{path.name} is no JSON ({error}); give the report of `covidseg segment`.") from error
    faulty = [key for key in _SECTIONS if not _is_section(content, key)]
    if faulty:
        raise VolumeError(
            f"{path.name} is no report of `covidseg segment`: it lacks {', '.join(faulty)}, or they are no such thing."
        )
    version = content.get("schema_version")
    if version != REPORT_SCHEMA_VERSION:
        raise VolumeError(
            f"{path.name} has schema version {version}, this covidseg knows {REPORT_SCHEMA_VERSION}: segment again."
        )
    fault = find_fault(content)
    if fault is not None:
        raise VolumeError(f"{path.name} is damaged: {fault}; segment again.")
    return SavedReport(content, path.name)


def _is_section(content: object, key: str) -> bool:
    if not isinstance(content, dict) or key not in content:
        return False
    return isinstance(content[key], list if key == "warnings" else dict)


def read_labels(path: Path, scan: Volume) -> NDArray[np.uint8]:
    """Read a label map, its axes in the order of the scan's.

    Raises:
        VolumeError: If it lies on another grid, or holds labels that covidseg does not know.
    """
    labels = on_grid_of(scan, read_label_map(path), reference_name="scan", name=f"label map {path.name}")
    unknown = sorted(set(np.flatnonzero(_count(labels)).tolist()) - set(LABELS))
    if unknown:
        raise VolumeError(f"{path.name} holds labels {unknown[:5]}; covidseg knows {dict(LABELS)}.")
    return labels.astype(np.uint8, copy=False)


def judge_report(report: SavedReport, scan: Volume) -> None:
    """Refuse a report of another scan, as far as that can be told.

    Raises:
        VolumeError: If shape or voxel size differ.
    """
    written = report.content["scan"]
    if list(written["shape"]) != list(scan.shape):
        raise VolumeError(f"{report.name} is of a scan of shape {written['shape']}, not of {list(scan.shape)}.")
    if not np.allclose(written["spacing_mm"], scan.spacing_mm, rtol=0, atol=_SPACING_MM):
        raise VolumeError(
            f"{report.name} is of a scan with voxels of {written['spacing_mm']} mm, not of {list(scan.spacing_mm)}."
        )


def tell_altered(report: SavedReport, scan: Volume, labels: NDArray[np.uint8]) -> dict[str, Any]:
    """The report's content, with a warning in front where the labels are not those that were measured.

    Args:
        report: The report.
        scan: The scan it is of.
        labels: (X, Y, Z), the labels that are shown.
    """
    measures, warnings = report.content["measures"], list(report.content["warnings"])
    counts = _count(labels)
    voxel_ml = float(np.prod(scan.spacing_mm)) / 1000.0
    found = {"infection": counts[INFECTION] * voxel_ml, "lung": counts[1:].sum() * voxel_ml}
    for what, found_ml in found.items():
        told_ml = measures[f"{what}_volume_ml"]["whole"]
        if told_ml is not None and not math.isclose(told_ml, found_ml, rel_tol=_SHARE, abs_tol=_ML):
            warnings.insert(
                0,
                f"The label map holds {found_ml:.2f} mL of {what}, its report says {told_ml:.2f} mL: the numbers are "
                "those of the report, the picture is that of the label map.",
            )
    return {**report.content, "warnings": warnings}


def _count(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Voxels of each value, (256,), slice by slice: all at once would be counted in a copy eight times as large."""
    counts = np.zeros(256, np.int64)
    for plane in planes(labels.T):
        counts += np.bincount(plane.ravel(), minlength=256)
    return counts
