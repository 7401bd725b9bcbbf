"""The answer to a series: segmentation, structured report and picture."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from covidseg_runtime.dicom.read_series import read_series
from covidseg_runtime.dicom.results import DEFAULT_OBJECTS, WantedObjects, make_results, write_results
from covidseg_runtime.report import build_report, describe_scan
from covidseg_runtime.segmenter import Segmentation, Segmenter
from covidseg_runtime.spooling import Spool


class SegmentAnswer:
    """Segments a series and writes its objects.

    Args:
        segmenter: It stays the caller's.
        wanted: Which objects are made.
        cancel: Ends the segmentation that runs when it is set.

    Attributes:
        last: The last segmentation; None before the first.
    """

    def __init__(
        self, segmenter: Segmenter, wanted: WantedObjects = DEFAULT_OBJECTS, cancel: threading.Event | None = None
    ) -> None:
        """Keep them."""
        self._segmenter, self._wanted, self._cancel = segmenter, wanted, cancel
        self.last: Segmentation | None = None

    def __call__(self, series: Path, results: Path, when: datetime) -> Sequence[Path]:
        """Answer one series.

        Args:
            series: Folder of its instances.
            results: Empty folder for the objects.
            when: Date and time that the objects tell.

        Raises:
            VolumeError: If the series is unsuitable.
            SegmentationCancelled: If cancel was set.
        """
        volume, source = read_series(series, spool=Spool(results))
        segmentation = self._segmenter.segment(volume, cancel=self._cancel)
        scan = describe_scan(source.series_uid, volume)
        self.last = segmentation
        report = build_report(segmentation, self._segmenter.bundle, self._segmenter.engine, scan)
        return write_results(results, make_results(volume, segmentation, report, source, self._wanted, when=when))
