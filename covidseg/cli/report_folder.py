"""`covidseg report` on a folder of results: the table, the overview, and the pages of the scans."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

import click

from covidseg.cli.exit_codes import INTERRUPTED, PART_FAILED, needs_extra
from covidseg.cli.interruption import cancel_on_signals
from covidseg_runtime.errors import OutputError, SegmentationCancelled

if TYPE_CHECKING:
    from covidseg_runtime.group_table import Group
    from covidseg_runtime.pages.folder_pages import PageOutcome

CSV_NAME, PARQUET_NAME, PAGE_NAME = "scans.csv", "scans.parquet", "index.html"


@dataclass(frozen=True)
class FolderReportOptions:
    """What was asked for.

    Attributes:
        scans: The folder that was segmented: pages are made for scans that have none.
        output: Where table, overview and pages go; None is the folder of results.
        parquet: Also write the table as Parquet.
    """

    scans: Path | None = None
    output: Path | None = None
    parquet: bool = False


def report_folder(folder: Path, options: FolderReportOptions) -> None:
    """Write the table, make the pages that are missing, then write the overview that links to them.

    Raises:
        VolumeError: If the folder holds no manifest, or a later covidseg wrote it.
        OutputError: If something cannot be written.
        CommandError: If an extra is missing.
        click.exceptions.Exit: If pages of some scans failed, or the run was interrupted.
    """
    from covidseg_runtime.group_table import read_group

    _import_extras(options)
    group = read_group(folder)
    output = _output_folder(folder, options)
    tables = _write_tables(group, output, options)
    tally = _make_pages(group, output, options.scans)
    pages = _write_overview(group, output, tables)
    if tally.interrupted:
        verb = "is" if tally.left == 1 else "are"
        click.echo(f"Interrupted: {_pages(tally.left)} {verb} left; the same command goes on.", err=True)
        raise click.exceptions.Exit(INTERRUPTED)
    _print_end(group, pages, [*tables, output / PAGE_NAME])
    if tally.failed:
        click.echo(f"{tally.failed} of {tally.total} pages failed", err=True)
        raise click.exceptions.Exit(PART_FAILED)


@dataclass
class _Tally:
    """Counts what becomes of the pages that are made, and says so, scan by scan."""

    total: int = 0
    done: int = 0
    failed: int = 0
    interrupted: bool = False

    @property
    def left(self) -> int:
        return self.total - self.done

    def count(self, outcome: PageOutcome) -> None:
        self.done += 1
        self.failed += outcome.error is not None
        told = "page written" if outcome.error is None else f"failed: {' '.join(str(outcome.error).split())}"
        click.echo(f"[{self.done}/{self.total}] {outcome.scan.record.scan}: {told}", err=True)


def _import_extras(options: FolderReportOptions) -> None:
    """Better refused now than after hours of work."""
    with needs_extra("report", "A page"):
        import covidseg_runtime.pages.folder_pages  # noqa: F401
    if options.parquet:
        from covidseg_runtime.group_files import import_pyarrow

        with needs_extra("parquet", "--parquet"):
            import_pyarrow()


def _output_folder(folder: Path, options: FolderReportOptions) -> Path:
    output = options.output or folder
    if output.exists() and not output.is_dir():
        raise click.UsageError(f"{output} is a file; the report on a folder needs a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output} cannot be made: {error.strerror}; give another place.") from error
    return output


def _write_tables(group: Group, output: Path, options: FolderReportOptions) -> list[Path]:
    from covidseg_runtime.group_files import write_csv, write_parquet

    tables = [output / CSV_NAME]
    write_csv(tables[0], group.rows)
    if options.parquet:
        tables.append(output / PARQUET_NAME)
        write_parquet(tables[1], group.rows)
    return tables


def _make_pages(group: Group, output: Path, scans: Path | None) -> _Tally:
    if scans is None:
        return _Tally()
    from covidseg_runtime.pages.folder_pages import PageJob, make_pages, scans_without_page

    job = PageJob(group, scans, output)
    wanted = scans_without_page(job)
    tally = _Tally(len(wanted))
    click.echo(f"{len(group.scans)} scans, {_pages(tally.total)} to make", err=True)
    with cancel_on_signals() as cancel:
        try:
            make_pages(job, wanted, tally.count, cancel)
        except SegmentationCancelled:
            tally.interrupted = True
    return tally


def _write_overview(group: Group, output: Path, tables: list[Path]) -> int:
    """Write the overview; how many pages it links to comes back."""
    from covidseg_runtime.pages.folder_pages import find_page
    from covidseg_runtime.pages.group_page import GroupFiles, render_group_page
    from covidseg_runtime.volume_files import write_bytes_atomic

    pages = {scan.record.scan: find_page(group, scan, output) for scan in group.scans if scan.done}
    links = {name: _url(page, output) for name, page in pages.items() if page is not None}
    content = render_group_page(group, GroupFiles(links, tuple(table.name for table in tables)))
    write_bytes_atomic(output / PAGE_NAME, content)
    return len(links)


def _url(page: Path, folder: Path) -> str:
    """Where a page lies, seen from `folder`; what is not a letter is escaped, so that no name can be a scheme."""
    return quote_from_bytes(os.fsencode(os.path.relpath(page, folder)), safe="/")


def _pages(count: int) -> str:
    return f"{count} page" if count == 1 else f"{count} pages"


def _print_end(group: Group, pages: int, written: list[Path]) -> None:
    from covidseg_runtime.report import NOTICE

    done = sum(scan.done for scan in group.scans)
    click.echo(f"scans              {len(group.scans)}")
    click.echo(f"segmented          {done}")
    click.echo(f"failed             {len(group.scans) - done}")
    click.echo(f"outliers           {sum(bool(scan.outlier) for scan in group.scans)}")
    click.echo(f"pages              {pages}")
    for path in written:
        click.echo(f"written            {path}")
    click.echo(NOTICE)
