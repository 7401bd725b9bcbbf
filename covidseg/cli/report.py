"""`covidseg report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.interruption import sigterm_interrupts
from covidseg.cli.report_scan import ReportOptions

_PLACE = click.Path(exists=True, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)
_DATE = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.argument("scan", metavar="SCAN|RESULTS", type=_PLACE)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The page, .html; of RESULTS a folder. [default: beside the label map; RESULTS]",
)
@click.option("--labels", type=_FILE, help="Label map of SCAN. [default: <SCAN>_covidseg.nii.gz here or beside SCAN]")
@click.option("--json-report", type=_FILE, help="JSON report of SCAN. [default: beside the label map]")
@click.option("--lobes", type=_FILE, help="Label map of the five lobes, for the scores that need them.")
@click.option("--date", type=_DATE, help="When SCAN was taken. [default: as its DICOM says]")
@click.option("--shear-tilt", is_flag=True, help="Of DICOM, the earlier scan too: as given to `covidseg segment`.")
@click.option("--prior", metavar="SCAN", type=_PLACE, help="An earlier scan of the same patient, to compare with.")
@click.option("--prior-labels", type=_FILE, help="Its label map. [default: as of SCAN]")
@click.option("--prior-report", type=_FILE, help="Its JSON report. [default: beside its label map]")
@click.option("--prior-date", type=_DATE, help="When it was taken. [default: as its DICOM says]")
@click.option(
    "--comparison", type=click.Path(dir_okay=False, path_type=Path), help="Also write the comparison as JSON."
)
@click.option("--scans", type=_FOLDER, help="Of RESULTS: the folder that was segmented; makes the page of each scan.")
@click.option("--parquet", is_flag=True, help="Of RESULTS: also write the table as Parquet.")
@click.pass_context
def report(ctx: click.Context, /, scan: Path, **options: Any) -> None:  # noqa: ANN401 - see ReportOptions
    """Write a page to read, from what `covidseg segment` wrote.

    SCAN, a chest CT that was segmented, becomes one HTML file: its slices with the labels, the measures, what they are
    worth. RESULTS, the folder of results of `covidseg segment DIR`, becomes a table and an overview that links to the
    pages of its scans. A browser needs no network for them. Research use only; not a medical device.
    """
    refuse_unknown_options(ctx)
    from covidseg_runtime.folder_records import is_folder_of_results
    from covidseg_runtime.scan_kind import scan_kind

    scans, parquet = options.pop("scans"), options.pop("parquet")
    if scan.is_dir() and (is_folder_of_results(scan) or scan_kind(scan) == "folder"):
        from covidseg.cli.report_folder import FolderReportOptions, report_folder

        _refuse(ctx, ("labels", "json_report", "lobes", "date", "shear_tilt", "prior", "comparison"), "for one scan")
        report_folder(scan, FolderReportOptions(scans, options["output"], parquet))
        return
    from covidseg.cli.report_scan import report_scan

    _refuse(ctx, ("scans", "parquet"), "for RESULTS, the folder of results of `covidseg segment DIR`")
    with sigterm_interrupts():
        report_scan(scan, ReportOptions(**options))


def _refuse(ctx: click.Context, names: tuple[str, ...], what: str) -> None:
    """Refuse options that were given and do not fit.

    Raises:
        click.UsageError: if one was.
    """
    for name in names:
        if ctx.params[name] not in (None, False):
            raise click.UsageError(f"--{name.replace('_', '-')} is {what}")
