"""`covidseg report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from covidseg.cli.config_file import refuse_unknown_options

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class ReportOptions:
    """The options of `covidseg report` as click hands them over."""

    labels: Path | None
    json_report: Path | None
    lobes: Path | None
    prior: Path | None
    prior_labels: Path | None
    prior_report: Path | None
    shear_tilt: bool
    scans: Path | None
    parquet: bool
    output: Path | None

    def given(self, *names: str) -> list[str]:
        """Those of `names` that were given, as options are written."""
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]


@click.command()
@click.argument("scan", metavar="SCAN|DIR", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The page. [default: beside the label map]")
@click.option("--labels", type=_FILE, help="Label map of SCAN. [default: <SCAN>_covidseg.nii.gz]")
@click.option("--json-report", type=_FILE, help="JSON report of these labels. [default: beside them]")
@click.option("--lobes", type=_FILE, help="Five lobes on SCAN's grid, from another tool: severity scores by lobe.")
@click.option("--prior", type=click.Path(exists=True, path_type=Path), help="An earlier scan to compare with.")
@click.option("--prior-labels", type=_FILE, help="Its label map. [default: <PRIOR>_covidseg.nii.gz]")
@click.option("--prior-report", type=_FILE, help="Its JSON report. [default: beside its labels]")
@click.option("--shear-tilt", is_flag=True, help="Of DICOM: as it was given to `covidseg segment`.")
@click.option(
    "--scans", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Of DIR: what was segmented."
)
@click.option("--parquet", is_flag=True, help="Of DIR: also write the table as Parquet.")
@click.pass_context
def report(ctx: click.Context, /, scan: Path, **options: Any) -> None:  # noqa: ANN401 - see ReportOptions
    """Write a page to read, of the chest CT SCAN and what was found on it, or of the folder of results DIR.

    SCAN is what `covidseg segment` took; its results are looked for in this folder, then beside SCAN. The page is one
    HTML file that needs no network: slices to scroll through, measures, their uncertainty, and how to repeat them.
    DIR is what `covidseg segment DIR` wrote.

    LOBES has the values of lungmask's LTRCLobes: 1 left upper, 2 left lower, 3 right upper, 4 right middle, 5 right
    lower. Research use only; not a medical device.
    """
    refuse_unknown_options(ctx)
    wanted = ReportOptions(**options)
    if _holds_results(scan):
        _report_on_folder(scan, wanted)
        return
    if given := wanted.given("scans", "parquet"):
        raise click.UsageError(f"{' and '.join(given)} is for a folder of results; {scan} holds no manifest.jsonl")
    from covidseg.cli.report_scan import report_scan

    report_scan(scan, wanted)


def _holds_results(path: Path) -> bool:
    from covidseg_runtime.scan_kind import scan_kind

    return path.is_dir() and (any(path.glob("manifest*.jsonl")) or scan_kind(path) == "folder")


def _report_on_folder(folder: Path, wanted: ReportOptions) -> None:
    if given := wanted.given("labels", "json_report", "lobes", "prior", "prior_labels", "prior_report", "shear_tilt"):
        raise click.UsageError(f"{' and '.join(given)} is for one scan; {folder} is a folder of results")
    from covidseg.cli.report_folder import FolderReportOptions, report_folder

    report_folder(folder, FolderReportOptions(wanted.scans, wanted.output, wanted.parquet))
