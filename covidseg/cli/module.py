"""`covidseg module`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.exit_codes import PART_FAILED, CommandError, needs_extra
from covidseg.cli.interruption import sigterm_interrupts

if TYPE_CHECKING:
    from covidseg_runtime import Segmenter
    from covidseg_runtime.pacs.module_contract import Task


@click.command()
@click.option("--model", metavar="NAME|DIR", help="A shipped model, or the folder of a bundle.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:n.")
@click.pass_context
def module(ctx: click.Context, model: str | None, device: str) -> None:
    """Answer the series that mercure, Kaapana or MONAI Deploy (Holoscan) hands to a container.

    Which of them it is, where the series lies and where results go is told by their environment variables.
    Research use only; not a medical device.
    """
    refuse_unknown_options(ctx)
    with needs_extra("dicom", "Answering a DICOM series"):
        from covidseg_runtime.dicom.results import make_results  # noqa: F401 - asked for before any work
    from covidseg_runtime import Segmenter
    from covidseg_runtime.pacs.module_contract import find_tasks

    tasks = find_tasks(os.environ)
    with sigterm_interrupts(), Segmenter.open(model, device=device) as segmenter:
        _answer_all(tasks, segmenter)


def _answer_all(tasks: Sequence[Task], segmenter: Segmenter) -> None:
    """Answer each; of several, one that fails does not stop the others."""
    from covidseg_runtime.errors import CovidsegError

    if len(tasks) == 1:
        _answer(tasks[0], segmenter)
        return
    failed = 0
    for number, task in enumerate(tasks, 1):
        try:
            _answer(task, segmenter)
        except CovidsegError as error:
            failed += 1
            click.echo(f"{task.platform}: series {number} of {len(tasks)} failed: {error}", err=True)
    if failed:
        raise CommandError(f"{failed} of {len(tasks)} series have no results; see above", PART_FAILED)


def _answer(task: Task, segmenter: Segmenter) -> None:
    from covidseg_runtime.pacs.module_contract import MERCURE, notification
    from covidseg_runtime.pacs.segment_answer import SegmentAnswer
    from covidseg_runtime.volume_files import write_json

    answer = SegmentAnswer(segmenter)
    files = answer(task.series, task.results, datetime.now())
    if task.platform == MERCURE and answer.last is not None:
        measures = answer.last.measures
        content = notification(measures.infection_volume_ml.whole, measures.infection_percent.whole)
        write_json(task.results / "result.json", content)
    click.echo(f"{task.platform}: {len(files)} objects written")
