"""Exit codes, and the one place where errors become a line on stderr and an exit code.

0    done
1    another failure, such as a full disk
2    wrong usage: options, settings, or an engine this machine does not have
3    the input is unsuitable; nothing was written
4    a part of a batch failed
5    the model is missing or altered
130  interrupted
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import click

from covidseg_runtime.errors import CovidsegError

FAILURE = 1
USAGE = 2
UNSUITABLE_INPUT = 3
PART_FAILED = 4
MODEL_UNUSABLE = 5
INTERRUPTED = 130

EXIT_CODES_HELP = (
    "Exit codes: 0 done, 1 other failure, 2 wrong usage or engine, 3 unsuitable input, "
    "4 part of a batch failed, 5 model missing or altered, 130 interrupted."
)


class CommandError(click.ClickException):
    """An error that is shown as `Error: ...` and ends the program with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Keep the message on one line: it may hold another library's several."""
        super().__init__(" ".join(message.split()))
        # click reads the code of the one error, though it is typed as that of the class
        self.exit_code = exit_code  # type: ignore[misc]


@contextmanager
def error_seam() -> Iterator[None]:
    """Turn the errors that a caller can meet into `CommandError`; others pass."""
    try:
        yield
    except CovidsegError as exc:
        raise CommandError(str(exc), exc.exit_code) from exc
    except KeyboardInterrupt as exc:
        click.echo("Interrupted.", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from exc
    except MemoryError as exc:
        raise CommandError("there is not enough memory for this scan", FAILURE) from exc
    except OSError as exc:
        if exc.errno == errno.EPIPE:  # the reader of our output has gone; click knows how to end
            raise
        raise CommandError(str(exc), FAILURE) from exc


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Translate a missing package into the line that installs it.

    Args:
        extra: The extra of covidseg that brings the package.
        purpose: What needs it, as the subject of a sentence.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        raise CommandError(
            f"{purpose} needs {missing or extra}, which is not installed: pip install 'covidseg[{extra}]'",
            USAGE,
        ) from exc
