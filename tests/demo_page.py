"""The real demo scan, segmented by the shipped model, and its page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime import Segmenter, SegmentSettings, build_report, describe_scan, read_volume
from covidseg_runtime.pages.scan_page import render_scan_page
from covidseg_runtime.volume import Volume

DEMO = Path(__file__).parent / "data" / "demo" / "coronacases_002_ct.nii.gz"


@dataclass(frozen=True, eq=False)
class DemoPage:
    """The scan, its labels (X, Y, Z), their report and the page."""

    volume: Volume
    labels: NDArray[np.uint8]
    report: dict[str, Any]
    page: bytes


def make_demo_page() -> DemoPage:
    """As `covidseg segment --quality fast` and `covidseg report` make it."""
    volume = read_volume(DEMO)
    with Segmenter.open(settings=SegmentSettings(quality="fast")) as segmenter:
        segmentation = segmenter.segment(volume)
        report = build_report(segmentation, segmenter.bundle, segmenter.engine, describe_scan(DEMO.name, volume))
        report["settings"] = segmenter.settings.describe()
    return DemoPage(volume, segmentation.labels, report, render_scan_page(volume, segmentation.labels, report))
