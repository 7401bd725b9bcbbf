"""Many scans with one segmenter: the next ones are read while the network works."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from traceback import format_exception
from typing import TypeVar

from covidseg_runtime.errors import CovidsegError, SegmentationCancelled, SettingsError
from covidseg_runtime.segmenter import Segmentation, Segmenter
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import read_volume

_POLL_S = 0.1

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SegmentedScan:
    """A scan and what was found in it.

    Attributes:
        path: Where it was read.
        volume: The scan; `write_label_map` wants it.
        segmentation: The result.
    """

    path: Path
    volume: Volume
    segmentation: Segmentation


@dataclass(frozen=True, eq=False)
class FailedScan:
    """A scan that has no result.

    Attributes:
        path: Where it was to be read.
        error: Why; one sentence, and the exit code that `covidseg segment` has for it.
    """

    path: Path
    error: CovidsegError


ManyResult = SegmentedScan | FailedScan


def segment_many(
    segmenter: Segmenter,
    paths: Iterable[Path],
    *,
    prefetch: int = 1,
    cancel: threading.Event | None = None,
) -> Generator[ManyResult, None, None]:
    """Segment scan after scan, in the order of `paths`; one that fails does not stop the others.

    A thread reads ahead. It ends with the generator, also where that is closed early. At most `prefetch` + 2 scans
    are in memory: those read ahead, the one in work, and the last result until the caller's loop lets go of it.

    Args:
        segmenter: It may serve other threads at the same time.
        paths: ``.nii`` or ``.nii.gz`` files; taken one by one as they are needed.
        prefetch: How many scans are read ahead; 0 reads each when the one before is done.
        cancel: Set it, from any thread, to end after the batch of tiles that is being computed.

    Yields:
        A `SegmentedScan` or a `FailedScan` for each path.

    Raises:
        SettingsError: if `prefetch` is negative.
        SegmentationCancelled: if `cancel` was set.
    """
    if prefetch < 0:
        raise SettingsError(f"prefetch is {prefetch}: expected 0 or more scans")
    return _segment_each(segmenter, paths, prefetch, cancel or threading.Event())


def attempt(action: Callable[[], T], name: str) -> T | CovidsegError:
    """Do what concerns one scan; its failure comes back as an error that keeps no array alive: without traceback.

    Of an unexpected one the traceback is a note, as text.

    Args:
        action: What is done.
        name: Of the scan, for messages.

    Raises:
        SegmentationCancelled: if `action` was cancelled; the scan is not to blame.
    """
    failure: CovidsegError
    try:
        return action()
    except SegmentationCancelled:
        raise
    except CovidsegError as error:
        failure = error
    except MemoryError as error:
        failure = CovidsegError(f"{name}: there is not enough memory for this scan")
        failure.__cause__ = error
    except Exception as error:  # our own fault, met by one scan, must not take a night's other scans with it
        failure = CovidsegError(f"{name}: unexpected {type(error).__name__}: {error}")
        failure.add_note("".join(format_exception(error)))
        failure.__cause__ = error
    _drop_tracebacks(failure)
    return failure


def _segment_each(
    segmenter: Segmenter, paths: Iterable[Path], prefetch: int, cancel: threading.Event
) -> Generator[ManyResult, None, None]:
    read = partial(read_volume, spool=segmenter.settings.spool, window=segmenter.settings.window_hu)
    with closing(_read_ahead(paths, read, prefetch, cancel)) as scans:
        for path, scan in scans:
            yield _result(segmenter, path, scan, cancel)
            del scan  # it would live on while the next one is awaited


def _result(segmenter: Segmenter, path: Path, scan: Volume | CovidsegError, cancel: threading.Event) -> ManyResult:
    if isinstance(scan, CovidsegError):
        return FailedScan(path, scan)
    outcome = attempt(partial(segmenter.segment, scan, cancel=cancel), path.name)
    return FailedScan(path, outcome) if isinstance(outcome, CovidsegError) else SegmentedScan(path, scan, outcome)


def _read_ahead(
    paths: Iterable[Path], read: Callable[[Path], Volume], prefetch: int, cancel: threading.Event
) -> Generator[tuple[Path, Volume | CovidsegError], None, None]:
    with ThreadPoolExecutor(1, "covidseg-reader") as reader:
        waiting: deque[tuple[Path, Future[Volume | CovidsegError]]] = deque()
        try:
            for path in paths:
                waiting.append((path, reader.submit(attempt, partial(read, path), path.name)))
                if len(waiting) > prefetch:
                    yield _take(waiting, cancel)
            while waiting:
                yield _take(waiting, cancel)
        finally:
            for _, scan in waiting:
                scan.cancel()


def _take(
    waiting: deque[tuple[Path, Future[Volume | CovidsegError]]], cancel: threading.Event
) -> tuple[Path, Volume | CovidsegError]:
    path, scan = waiting.popleft()
    # Asked now and then: a share that does not answer must not make the caller deaf.
    while not cancel.is_set():
        if wait((scan,), _POLL_S).done:
            return path, scan.result()
    scan.cancel()
    raise SegmentationCancelled(f"cancelled before {path.name} was segmented")


def _drop_tracebacks(error: BaseException | None) -> None:
    """Let go of the frames of an error and its causes, and of their callers': their locals hold the scan."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
