"""Progress on stderr, and what a run cost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import TaskID


@contextmanager
def tile_progress() -> Iterator[Callable[[int, int], None] | None]:
    """Give a function to call with (tiles done, tiles in total).

    A bar on a terminal; one line at the end elsewhere, so that logs stay readable.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("tiles", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    yield _print_last


@contextmanager
def phase_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function to call with (phase, steps done, steps in total); bars on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True), transient=True) as bars:

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield show


def _print_last(done: int, total: int) -> None:
    if done == total:
        click.echo(f"{total} tiles done", err=True)
