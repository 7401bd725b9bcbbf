"""`covidseg report` on one scan: its page, and what changed since an earlier one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.exit_codes import needs_extra
from covidseg.cli.scan_input import ReadingOptions, read_scan
from covidseg.cli.segment_files import stem
from covidseg_runtime.scan_kind import scan_kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from covidseg_runtime import Volume
    from covidseg_runtime.follow_up.labelled_scan import LabelledScan


@dataclass(frozen=True)
class ReportOptions:
    """The options of `covidseg report` as click hands them over; those for a folder aside."""

    output: Path | None
    labels: Path | None
    json_report: Path | None
    lobes: Path | None
    date: datetime | None
    shear_tilt: bool
    prior: Path | None
    prior_labels: Path | None
    prior_report: Path | None
    prior_date: datetime | None
    comparison: Path | None


@dataclass(frozen=True)
class _Files:
    """What belongs to one scan."""

    scan: Path
    labels: Path
    report: Path


def report_scan(scan: Path, options: ReportOptions) -> None:
    """Write the page of one scan.

    Raises:
        click.UsageError: if options contradict each other or files are missing.
        VolumeError: if what was given does not belong together.
        CommandError: if an extra is missing.
    """
    with needs_extra("report", "A page"):
        from covidseg_runtime.pages.scan_page import render_scan_page
    from covidseg_runtime.report import NOTICE
    from covidseg_runtime.volume_files import write_bytes_atomic, write_json

    files = _find_files(scan, options.labels, options.json_report, "--labels, --json-report")
    prior = _find_prior(options)
    page = _plan_page(files, prior, options)
    current = _read_labelled(files, options.date, shear_tilt=options.shear_tilt)
    follow_up = None if prior is None else _compare(prior, current, options)
    lobes = None if options.lobes is None else _read_lobes(options.lobes, current.volume)
    content = render_scan_page(current.volume, current.labels, current.report or {}, follow_up, lobes)
    if options.comparison is not None and follow_up is not None:
        write_json(options.comparison, follow_up)
        click.echo(f"written            {options.comparison}")
    write_bytes_atomic(page, content)
    click.echo(f"written            {page}")
    click.echo(NOTICE)


def _find_files(scan: Path, labels: Path | None, report: Path | None, options: str) -> _Files:
    """What `covidseg segment` wrote of a scan: as given, else where it writes by default, else beside the scan.

    Raises:
        click.UsageError: if it is not there.
    """
    name = f"{stem(scan)}_covidseg.nii.gz"
    for found in (labels,) if labels is not None else (Path(name), scan.parent / name):
        described = report or found.with_name(f"{stem(found)}.json")
        if found.is_file() and described.is_file():
            return _Files(scan, found, described)
    if labels is not None:
        raise click.UsageError(
            f"there is no JSON report beside {labels}; give that of `covidseg segment` with {options}"
        )
    raise click.UsageError(
        f"there is no {name} with its JSON report here or beside {scan}; make them: covidseg segment {scan}, "
        f"or say where they are with {options}"
    )


def _find_prior(options: ReportOptions) -> _Files | None:
    if options.prior is not None:
        names = "--prior-labels, --prior-report"
        return _find_files(options.prior, options.prior_labels, options.prior_report, names)
    for name in ("prior_labels", "prior_report", "prior_date", "comparison"):
        if getattr(options, name) is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --prior, the earlier scan")
    return None


def _plan_page(files: _Files, prior: _Files | None, options: ReportOptions) -> Path:
    """Where the page goes.

    Raises:
        click.UsageError: if it, or the comparison, would replace something, or its folder is missing.
    """
    page = options.output or files.labels.with_name(f"{stem(files.labels)}.html")
    if page.suffix.lower() not in (".html", ".htm"):
        raise click.UsageError(f"the page {page} must end in .html")
    given = [files, *([] if prior is None else [prior])]
    taken = [path.resolve() for one in given for path in (one.scan, one.labels, one.report)]
    for path in (page, options.comparison):
        if path is None:
            continue
        if not path.parent.is_dir():
            raise click.UsageError(f"the folder of {path} does not exist")
        if path.is_dir() or path.resolve() in taken:
            raise click.UsageError(f"{path} is a folder, or would replace a scan or its results; give another name")
        taken.append(path.resolve())
    return page


def _read_labelled(files: _Files, taken: datetime | None, *, shear_tilt: bool = False) -> LabelledScan:
    """Read a scan again as it was read for its report, and its label map.

    Raises:
        VolumeError: if the three do not belong together.
    """
    from covidseg_runtime.follow_up.labelled_scan import LabelledScan
    from covidseg_runtime.pages.saved_results import judge_report, read_labels, read_report, tell_altered

    report = read_report(files.report)
    name, kind = report.content["scan"]["file"], scan_kind(files.scan)
    # Of DICOM the report names the series.
    reading = ReadingOptions(name if kind == "dicom" else None, shear_tilt, report.window_hu)
    scan = read_scan(files.scan, kind, reading, None)
    labels = read_labels(files.labels, scan.volume)
    judge_report(report, scan.volume)
    told = tell_altered(report, scan.volume, labels)
    day = taken.date() if taken is not None else None if scan.source is None else scan.source.acquisition_date
    return LabelledScan(scan.volume, labels, name, told, day)


def _compare(prior: _Files, current: LabelledScan, options: ReportOptions) -> dict[str, Any]:
    with needs_extra("report", "A comparison"):
        from covidseg_runtime.follow_up.comparison import compare_scans

        earlier = _read_labelled(prior, options.prior_date, shear_tilt=options.shear_tilt)
        return compare_scans(earlier, current).describe()


def _read_lobes(path: Path, scan: Volume) -> NDArray[np.uint8]:
    from covidseg_runtime import read_label_map
    from covidseg_runtime.severity import align_lobes

    return align_lobes(scan, read_label_map(path))
