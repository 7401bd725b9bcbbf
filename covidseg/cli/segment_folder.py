"""`covidseg segment` on a folder of scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.exit_codes import INTERRUPTED, PART_FAILED, CommandError, needs_extra
from covidseg.cli.interruption import cancel_on_signals
from covidseg.cli.segment_options import SegmentOptions, plan_spool, wanted_segmenter
from covidseg_runtime.errors import CovidsegError, SegmentationCancelled

if TYPE_CHECKING:
    import threading

    from covidseg_runtime.folder_batch import FolderBatch
    from covidseg_runtime.folder_manifest import ScanRecord
    from covidseg_runtime.folder_scans import FolderJob

_OF_ONE_SCAN = ("truth", "preview", "probability", "report", "series")


def segment_folder(folder: Path, options: SegmentOptions) -> None:
    """Segment what is left of a folder, and end with the exit code of a batch.

    Raises:
        click.UsageError: if options contradict each other.
        CommandError: if the run could not go on; what is left is told with the reason.
        click.exceptions.Exit: if a scan failed, or the run was interrupted.
    """
    from covidseg_runtime.folder_scans import FolderJob, Part

    job = FolderJob(folder, _output_folder(options), Part(options.part_id, options.num_parts), options.overwrite)
    with cancel_on_signals() as cancel, _open_run(job, options, cancel) as run:
        click.echo(run.choice, err=True)
        tally = _Tally(run)
        click.echo(f"{len(run.scans)} scans, {tally.done_before} done before", err=True)
        try:
            run.segment(tally.count, cancel)
        except SegmentationCancelled as error:
            click.echo(f"Interrupted: {_what_is_left(tally, options)}", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from error
        except CovidsegError as error:
            raise CommandError(f"{str(error).rstrip('.')}. {_what_is_left(tally, options)}", error.exit_code) from error
    _print_end(tally, job.output, options)
    if tally.failed:
        click.echo(f"{tally.failed} of {len(run.scans)} scans failed", err=True)
        raise click.exceptions.Exit(PART_FAILED)


@contextmanager
def _open_run(job: FolderJob, options: SegmentOptions, cancel: threading.Event) -> Iterator[FolderBatch]:
    """The folder, to be segmented here or on a cluster."""
    wanted = wanted_segmenter(options, plan_spool(options, job.output))
    if options.ray is None:
        from covidseg_runtime.folder_run import open_folder_run

        with wanted.open() as segmenter, open_folder_run(job, segmenter) as run:
            yield run
        return
    if options.threads is not None:
        raise click.UsageError("--threads is --cores-per-actor where a folder is segmented with --ray")
    from covidseg_runtime.ray_cluster import ClusterSettings, join_cluster, require_ray
    from covidseg_runtime.ray_run import open_ray_run

    with needs_extra("ray", "--ray"):
        require_ray()
    settings = ClusterSettings(options.ray, options.ray_actors, options.cores_per_actor, options.ray_wait)
    with (
        join_cluster(settings.address),
        open_ray_run(job, wanted, settings, lambda line: click.echo(line, err=True), cancel) as ray_run,
    ):
        yield ray_run


class _Tally:
    """Counts what becomes of the scans of a run, and says so, scan by scan."""

    def __init__(self, run: FolderBatch) -> None:
        self.run = run
        self.done_before = len(run.scans) - len(run.left)
        self._counts: Counter[str] = Counter()

    @property
    def segmented(self) -> int:
        return self._counts["ok"]

    @property
    def failed(self) -> int:
        return self._counts["failed"]

    @property
    def left(self) -> int:
        return len(self.run.left) - self._counts.total()

    def count(self, record: ScanRecord) -> None:
        self._counts[record.status] += 1
        number = f"[{self.done_before + self._counts.total()}/{len(self.run.scans)}]"
        click.echo(f"{number} {record.scan}: {_outcome(record)}", err=True)


def _output_folder(options: SegmentOptions) -> Path:
    for name in _OF_ONE_SCAN:
        if getattr(options, name) is not None:
            raise click.UsageError(f"--{name} is for one scan, not for a folder")
    if options.output is None:
        raise click.UsageError("a folder of scans needs -o, the folder for the results")
    if options.output.exists() and not options.output.is_dir():
        raise click.UsageError(f"{options.output} is a file; a folder of scans needs a folder for the results")
    return options.output


def _outcome(record: ScanRecord) -> str:
    if record.error is not None:
        return f"failed: {record.error}"
    percent = record.measures["infection_percent"]
    infected = "infected lung unknown" if percent is None else f"infected lung {percent:.1f} %"
    return f"{infected}, {record.seconds:.1f} s"


def _what_is_left(tally: _Tally, options: SegmentOptions) -> str:
    how = "begins again, without --overwrite it goes on" if options.overwrite else "goes on"
    return f"{tally.left} of {len(tally.run.scans)} scans are left; the same command {how}."


def _print_end(tally: _Tally, output: Path, options: SegmentOptions) -> None:
    from covidseg_runtime.report import NOTICE

    summary: dict[str, Any] = {
        "notice": NOTICE,
        "scans": len(tally.run.scans),
        "done_before": tally.done_before,
        "segmented": tally.segmented,
        "failed": tally.failed,
        "manifest": str(tally.run.manifest_path),
        "settings": tally.run.settings,
    }
    if options.json:
        click.echo(dumps(summary, indent=2))
        return
    click.echo(f"scans              {summary['scans']}")
    click.echo(f"done before        {tally.done_before}")
    click.echo(f"segmented          {tally.segmented}")
    click.echo(f"failed             {tally.failed}")
    click.echo(f"written            {output}")
    click.echo(NOTICE)
