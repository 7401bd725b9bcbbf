"""`covidseg report` on one scan: find what `covidseg segment` wrote, hold it against the scan, write the page."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.exit_codes import USAGE, CommandError, needs_extra
from covidseg.cli.interruption import sigterm_interrupts
from covidseg.cli.report import ReportOptions
from covidseg.cli.scan_input import read_scan
from covidseg.cli.segment_files import stem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from covidseg_runtime import Volume
    from covidseg_runtime.follow_up.labelled_scan import LabelledScan

_MIB = 1e6


@dataclass(frozen=True)
class ResultFiles:
    """A scan and what was written of it."""

    scan: Path
    labels: Path
    report: Path


@dataclass(frozen=True)
class _Reading:
    """How a scan is read again as it was read when it was segmented; see `covidseg.cli.scan_input.ReadOptions`."""

    series: str | None
    shear_tilt: bool
    window: tuple[float, float] | None


def report_scan(scan: Path, options: ReportOptions) -> None:
    """Write the page of one scan.

    Raises:
        click.UsageError: If options contradict each other.
        CommandError: If results or an extra are missing.
        VolumeError: If label map or report are not of the scan.
    """
    with needs_extra("report", "A page"):
        from covidseg_runtime.pages.scan_page import render_scan_page
    from covidseg_runtime.volume_files import write_bytes_atomic

    files = find_results(scan, options.labels, options.json_report, "")
    prior = _prior_files(options)
    page = _plan_page(options, files, prior)
    started = time.perf_counter()
    with sigterm_interrupts():
        current = _read_result(files, options)
        lobes = _read_lobes(options, current.volume)
        follow_up = None if prior is None else _compare(_read_result(prior, options), current)
        content = render_scan_page(current.volume, current.labels, current.report or {}, follow_up, lobes)
        write_bytes_atomic(page, content)
    click.echo(f"page of {len(content) / _MIB:.1f} MB made in {time.perf_counter() - started:.1f} s", err=True)
    click.echo(f"written            {page}")
    click.echo((current.report or {})["notice"])


def find_results(scan: Path, labels: Path | None, report: Path | None, prefix: str) -> ResultFiles:
    """Where the results of a scan lie: as given, or as `covidseg segment` names them.

    Args:
        scan: The scan.
        labels: The label map, if given.
        report: The JSON report, if given.
        prefix: Of the options' names in messages: nothing, or "prior-".

    Raises:
        CommandError: If they are not there.
    """
    labels = labels or _first_there(Path(f"{stem(scan)}_covidseg.nii.gz"), scan)
    if labels is None:
        name = f"{stem(scan)}_covidseg.nii.gz"
        raise CommandError(
            f"there is no {name} here or beside the scan: make it by `covidseg segment {scan}`, or give "
            f"--{prefix}labels",
            USAGE,
        )
    report = report or labels.with_name(f"{stem(labels)}.json")
    if not report.is_file():
        option = "prior-report" if prefix else "json-report"
        raise CommandError(
            f"there is no {report}: make it by `covidseg segment {scan} -o {labels}`, or give --{option}", USAGE
        )
    return ResultFiles(scan, labels, report)


def _first_there(name: Path, scan: Path) -> Path | None:
    places = (name, scan.parent / name)
    return next((place for place in places if place.is_file()), None)


def _prior_files(options: ReportOptions) -> ResultFiles | None:
    if options.prior is None:
        if given := options.given("prior_labels", "prior_report"):
            raise click.UsageError(f"{' and '.join(given)} needs --prior, the earlier scan")
        return None
    with needs_extra("report", "Comparing two scans"):
        import SimpleITK  # noqa: F401 - better refused now than after reading
    return find_results(options.prior, options.prior_labels, options.prior_report, "prior-")


def _plan_page(options: ReportOptions, files: ResultFiles, prior: ResultFiles | None) -> Path:
    page = options.output or files.labels.with_name(f"{stem(files.labels)}.html")
    taken = [path for result in (files, prior) if result for path in (result.scan, result.labels, result.report)]
    if page.is_dir():
        raise click.UsageError(f"{page} is a folder; a file is expected")
    if not page.parent.is_dir():
        raise click.UsageError(f"the folder of {page} does not exist")
    if page.resolve() in [path.resolve() for path in (*taken, options.lobes) if path]:
        raise click.UsageError(f"{page} would replace the scan or one of its results")
    return page


def _read_result(files: ResultFiles, options: ReportOptions) -> LabelledScan:
    """The scan with its labels and report, each held against the others."""
    from covidseg_runtime.follow_up.labelled_scan import LabelledScan
    from covidseg_runtime.pages.saved_results import judge_report, read_labels, read_report
    from covidseg_runtime.scan_kind import scan_kind
    from covidseg_runtime.spooling import Spool

    report = read_report(files.report)
    kind = scan_kind(files.scan)
    name = report.content["scan"]["file"]
    # Of DICOM the report names the series.
    reading = _Reading(name if kind == "dicom" else None, options.shear_tilt, report.window_hu)
    scan = read_scan(files.scan, kind, reading, Spool(files.labels.parent))
    labels = read_labels(files.labels, scan.volume)
    judge_report(report, scan.volume, labels)
    acquired = None if scan.source is None else scan.source.acquisition_date
    return LabelledScan(scan.volume, labels, name, report.content, acquired)


def _read_lobes(options: ReportOptions, scan: Volume) -> NDArray[np.uint8] | None:
    if options.lobes is None:
        return None
    from covidseg_runtime import read_label_map
    from covidseg_runtime.severity import align_lobes

    return align_lobes(scan, read_label_map(options.lobes))


def _compare(prior: LabelledScan, current: LabelledScan) -> dict[str, Any]:
    from covidseg_runtime.follow_up.comparison import compare_scans

    click.echo("bringing the earlier scan onto this one", err=True)
    return compare_scans(prior, current).describe()
