"""What is done for a job: read the scan, segment it, write every result into a folder."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.preview import render_preview
from covidseg_runtime.report import build_report, describe_scan
from covidseg_runtime.segmenter import Progress, Segmentation, Segmenter
from covidseg_runtime.service.jobs import RESULT_FILES, Job
from covidseg_runtime.service.scan_content import is_dicom
from covidseg_runtime.spooling import Spool
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import read_volume, write_bytes_atomic, write_json, write_label_map

if TYPE_CHECKING:
    from covidseg_runtime.dicom.results import ResultObject
    from covidseg_runtime.dicom.source_series import SourceSeries

_NO_SERIES = "DICOM objects are made of DICOM series alone; this scan was NIfTI."
_NO_PAGE = "It was not asked for; send page=true with the scan."
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip archive can tell


@dataclass(frozen=True)
class Interest:
    """Who follows a job.

    Attributes:
        on_progress: Called with tiles done and total.
        cancel: Ends the job when it is set.
    """

    on_progress: Progress
    cancel: threading.Event


def run_scan_job(segmenter: Segmenter, job: Job, scan: Path, results: Path, interest: Interest) -> Mapping[str, str]:
    """Make the results of a job.

    Args:
        segmenter: Its engine is shared with other jobs.
        job: What is asked for.
        scan: The upload.
        results: Empty folder.
        interest: Who follows it.

    Returns:
        Result -> why it was not made.

    Raises:
        VolumeError: If the scan is unsuitable.
        OutputError: If a result cannot be written.
        SegmentationCancelled: If it was cancelled.
    """
    spool = Spool(results)
    volume, source = _read(scan, job, spool)
    own = segmenter.with_settings(job.options.segment_settings(spool))
    segmentation = own.segment(volume, interest.on_progress, cancel=interest.cancel)
    # What an upload is called may name a patient; the job's id does not.
    name = f"{job.id}{scan.name.removeprefix('scan')}" if source is None else source.series_uid
    report = build_report(segmentation, own.bundle, own.engine, describe_scan(name, volume))
    report["settings"] = own.settings.describe()
    write_label_map(results / RESULT_FILES["labels"], segmentation.labels, volume)
    write_json(results / RESULT_FILES["report"], report)
    write_bytes_atomic(results / RESULT_FILES["preview"], render_preview(volume, segmentation.labels))
    missing = {
        "page": _write_page(results, volume, segmentation, report) if job.options.page else _NO_PAGE,
        "dicom": _NO_SERIES if source is None else _write_dicom(results, volume, segmentation, report, source, job),
    }
    return {result: why for result, why in missing.items() if why is not None}


def _read(scan: Path, job: Job, spool: Spool) -> tuple[Volume, SourceSeries | None]:
    if not is_dicom(scan):
        return read_volume(scan, spool=spool, window=job.options.window_hu), None
    from covidseg_runtime.dicom.read_series import read_series  # an upload of DICOM is refused where it is missing

    return read_series(scan, spool=spool)


def _write_page(results: Path, volume: Volume, segmentation: Segmentation, report: Mapping[str, Any]) -> str | None:
    """Write the page to read; why there is none comes back."""
    try:
        from covidseg_runtime.pages.scan_page import render_scan_page
    except ModuleNotFoundError as error:
        return f"The page needs {error.name}, which this service has not: pip install 'covidseg[report]'."
    write_bytes_atomic(results / RESULT_FILES["page"], render_scan_page(volume, segmentation.labels, report))
    return None


def _write_dicom(
    results: Path,
    volume: Volume,
    segmentation: Segmentation,
    report: Mapping[str, Any],
    source: SourceSeries,
    job: Job,
) -> str | None:
    """Write the objects for an archive; why there are none comes back: the other results stand without them."""
    from covidseg_runtime.dicom.results import make_results

    try:
        # DICOM without a time zone is the hospital's time.
        when = job.accepted.astimezone().replace(tzinfo=None)
        objects = make_results(volume, segmentation, report, source, when=when)
    except VolumeError as error:
        return str(error)
    write_bytes_atomic(results / RESULT_FILES["dicom"], _zipped(objects))
    return None


def _zipped(objects: Sequence[ResultObject]) -> bytes:
    """The same objects give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in objects:
            archive.writestr(zipfile.ZipInfo(one.file_name, _LONG_AGO), one.content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
