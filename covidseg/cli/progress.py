"""Progress on stderr, and what a run cost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

import click


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


def peak_memory_mib() -> float | None:
    """The most memory this process held so far; None where the system does not tell (Windows)."""
    try:
        resource = import_module("resource")
    except ImportError:
        return None
    peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _print_last(done: int, total: int) -> None:
    if done == total:
        click.echo(f"{total} tiles done", err=True)
