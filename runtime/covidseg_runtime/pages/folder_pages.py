"""The page of every scan of a folder of results: which are there, and making those that are not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from covidseg_runtime.bundle import sha256_of
from covidseg_runtime.errors import CovidsegError, OutputError, SegmentationCancelled, VolumeError
from covidseg_runtime.folder_scans import remove_unfinished
from covidseg_runtime.group_table import Group, GroupScan, path_below, result_path
from covidseg_runtime.many_scans import attempt
from covidseg_runtime.pages.scan_page import render_scan_page
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import read_label_map, read_volume, write_bytes_atomic

_LABELS_ENDING, _PAGE_ENDING = ".nii.gz", ".html"
_LARGEST_SHIFT_MM = 0.01
_ALTERED = (
    "The label map was altered after it was measured: the numbers are those of the label map that was written first, "
    "the picture is that of the altered one."
)


@dataclass(frozen=True)
class PageJob:
    """Pages to make.

    Attributes:
        group: The results.
        scans: The folder that was segmented.
        output: Where pages go: the folder of results, or another one with the same sub-folders.
    """

    group: Group
    scans: Path
    output: Path


@dataclass(frozen=True, eq=False)
class PageOutcome:
    """What became of the page of one scan.

    Attributes:
        scan: The scan.
        error: Why there is none, or None.
    """

    scan: GroupScan
    error: CovidsegError | None


def find_page(group: Group, scan: GroupScan, output: Path) -> Path | None:
    """The page of a scan in `output` or beside its label map; None where there is none or it is out of date."""
    written = [result_path(group.folder, scan.record, kind) for kind in ("labels", "report")]
    try:
        youngest = max(path.stat().st_mtime_ns for path in written if path is not None and path.exists())
    except ValueError:
        return None
    for folder in (output, group.folder):
        page = _page_path(folder, scan)
        if page is not None and page.is_file() and page.stat().st_mtime_ns >= youngest:
            return page
    return None


def scans_without_page(job: PageJob) -> tuple[GroupScan, ...]:
    """Those that were segmented and whose page is missing or out of date."""
    return tuple(scan for scan in job.group.scans if scan.done and find_page(job.group, scan, job.output) is None)


def make_pages(
    job: PageJob,
    scans: tuple[GroupScan, ...],
    on_page: Callable[[PageOutcome], None],
    cancel: threading.Event | None = None,
) -> None:
    """Make the pages of scans; one that fails does not stop the others.

    Args:
        job: Where scans and results lie, and where pages go.
        scans: Whose pages.
        on_page: Called after each.
        cancel: Set it to end after the page in work.

    Raises:
        SegmentationCancelled: If `cancel` was set.
        OutputError: If pages cannot be written.
    """
    places = {scan.record.scan: _page_path(job.output, scan) for scan in scans}
    remove_unfinished(place for place in places.values() if place is not None)
    for scan in scans:
        if cancel is not None and cancel.is_set():
            raise SegmentationCancelled(f"cancelled before the page of {scan.record.scan} was made")
        outcome = attempt(partial(_make_page, job, scan), scan.record.scan)
        if isinstance(outcome, OutputError):
            raise outcome
        on_page(PageOutcome(scan, outcome))


def _page_path(folder: Path, scan: GroupScan) -> Path | None:
    labels = scan.record.outputs.get("labels")
    if labels is None or not labels["file"].endswith(_LABELS_ENDING):
        return None
    return path_below(folder, labels["file"].removesuffix(_LABELS_ENDING) + _PAGE_ENDING)


def _make_page(job: PageJob, scan: GroupScan) -> None:
    page = _page_path(job.output, scan)
    if page is None:
        raise VolumeError(f"{scan.record.scan}: the manifest names no label map in the folder of results.")
    report = _read_report(job, scan)
    volume = _read_scan(job, scan)
    labels = _read_labels(job, scan, volume)
    content = render_scan_page(volume, labels.voxels, report)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{page.parent} cannot be made: {error.strerror}; give another place.") from error
    write_bytes_atomic(page, content)


def _read_report(job: PageJob, scan: GroupScan) -> Mapping[str, Any]:
    path = result_path(job.group.folder, scan.record, "report")
    if path is None or scan.row["report_check"] != "as recorded":
        raise VolumeError(
            f"{scan.record.scan}: its report is not the one that was recorded; segment it again for a page."
        )
    report: dict[str, Any] = json.loads(path.read_bytes())
    if scan.row["labels_check"] == "altered":
        report["warnings"] = [_ALTERED, *report["warnings"]]
    return report


def _read_scan(job: PageJob, scan: GroupScan) -> Volume:
    """The scan, if it is the one that was segmented: its size and time tell, or else its content."""
    path = path_below(job.scans, scan.record.scan)
    if path is None or not path.is_file():
        raise VolumeError(f"{scan.record.scan} is not in {job.scans}; give the folder that was segmented.")
    given, state = scan.record.input, path.stat()
    same = (state.st_size, state.st_mtime_ns) == (given.get("size_bytes"), given.get("mtime_ns"))
    if not same and sha256_of(path) != given.get("sha256"):
        raise VolumeError(f"{scan.record.scan} in {job.scans} is not the scan that was segmented.")
    window = scan.record.settings.get("window_hu")
    return read_volume(path, window=None if window is None else (float(window[0]), float(window[1])))


def _read_labels(job: PageJob, scan: GroupScan, volume: Volume) -> Volume:
    path = result_path(job.group.folder, scan.record, "labels")
    if path is None:
        raise VolumeError(f"{scan.record.scan}: the manifest names no label map in the folder of results.")
    labels = read_label_map(path)
    same_grid = labels.shape == volume.shape and np.allclose(labels.affine, volume.affine, atol=_LARGEST_SHIFT_MM)
    if not same_grid:
        raise VolumeError(f"{path.name} is on another grid than {scan.record.scan}; it is not the scan's label map.")
    return labels
