"""`covidseg report`."""

from __future__ import annotations

from pathlib import Path

import click

from covidseg.cli.config_file import refuse_unknown_options


@click.command()
@click.argument("results", type=click.Path(exists=True, path_type=Path))
@click.option("--scans", type=click.Path(exists=True, file_okay=False, path_type=Path), help="What was segmented.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write. [default: RESULTS]")
@click.option("--parquet", is_flag=True, help="Also write the table as Parquet.")
@click.pass_context
def report(ctx: click.Context, /, results: Path, scans: Path | None, output: Path | None, *, parquet: bool) -> None:
    """Write pages to read of the folder RESULTS."""
    refuse_unknown_options(ctx)
    from covidseg.cli.report_folder import FolderReportOptions, report_folder

    report_folder(results, FolderReportOptions(scans, output, parquet))
