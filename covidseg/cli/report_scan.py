"""`covidseg report` on one scan: its page, and what changed since an earlier one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from covidseg.cli.exit_codes import needs_extra
from covidseg.cli.scan_input import ReadingOptions, read_scan
from covidseg.cli.segment_files import stem
from covidseg_runtime.errors import VolumeError
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.scan_kind import scan_kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from covidseg_runtime import Volume
    from covidseg_runtime.follow_up.labelled_scan import LabelledScan

_LARGEST_SHIFT_MM = 0.01
_LARGEST_DIFFERENCE_ML = 0.01
_ALTERED = (
    "The label map holds {found:.2f} mL of infection, its report says {told:.2f} mL: the numbers are those of the "
    "report, the picture is that of the label map."
)


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
    from covidseg_runtime import read_label_map
    from covidseg_runtime.follow_up.labelled_scan import LabelledScan

    report = _read_report(files.report)
    name, kind = report["scan"]["file"], scan_kind(files.scan)
    window = report["scan"]["window_hu"]
    reading = ReadingOptions(
        series=name if kind == "dicom" else None,
        shear_tilt=shear_tilt,
        window=None if window is None else (float(window[0]), float(window[1])),
    )
    scan = read_scan(files.scan, kind, reading, None)
    labels = read_label_map(files.labels)
    _judge_grid(files, scan.volume, labels, report)
    _tell_altered(labels, report)
    day = taken.date() if taken is not None else None if scan.source is None else scan.source.acquisition_date
    return LabelledScan(scan.volume, labels.voxels, name, report, day)


def _read_report(path: Path) -> dict[str, Any]:
    """A report of `covidseg segment`.

    Raises:
        VolumeError: if it is none, or of a later covidseg.
    """
    from covidseg_runtime.folder_records import refuse_newer
    from covidseg_runtime.report import REPORT_SCHEMA_VERSION

    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
        version, _ = report["schema_version"], (report["scan"]["file"], report["measures"]["infection_volume_ml"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VolumeError(f"{path} is no report of `covidseg segment`; give the JSON it wrote.") from error
    refuse_newer(path, version, REPORT_SCHEMA_VERSION)
    return report


def _judge_grid(files: _Files, volume: Volume, labels: Volume, report: dict[str, Any]) -> None:
    on_grid = labels.shape == volume.shape and np.allclose(labels.affine, volume.affine, atol=_LARGEST_SHIFT_MM)
    if not on_grid:
        raise VolumeError(f"{files.labels} lies on another grid than {files.scan}: it is not its label map.")
    if tuple(report["scan"]["shape"]) != volume.shape:
        raise VolumeError(
            f"{files.report} is of a scan with shape {tuple(report['scan']['shape'])}, {files.scan} has "
            f"{volume.shape}: it is not its report."
        )


def _tell_altered(labels: Volume, report: dict[str, Any]) -> None:
    """Warn, in the report, where the label map is not the one that was measured."""
    found = np.count_nonzero(labels.voxels == INFECTION) * float(np.prod(labels.spacing_mm)) / 1000.0
    told = report["measures"]["infection_volume_ml"]["whole"]
    if told is not None and abs(found - told) > max(_LARGEST_DIFFERENCE_ML, 1e-3 * told):
        report["warnings"] = [_ALTERED.format(found=found, told=told), *report["warnings"]]


def _compare(prior: _Files, current: LabelledScan, options: ReportOptions) -> dict[str, Any]:
    with needs_extra("report", "A comparison"):
        from covidseg_runtime.follow_up.comparison import compare_scans

        return compare_scans(_read_labelled(prior, options.prior_date), current).describe()


def _read_lobes(path: Path, scan: Volume) -> NDArray[np.uint8]:
    from covidseg_runtime import read_label_map
    from covidseg_runtime.severity import align_lobes

    return align_lobes(scan, read_label_map(path))
