"""The node: listens, waits until a series is whole, answers one after the other, sends back; until told to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from covidseg_runtime.errors import CovidsegError, OutputError, SegmentationCancelled, VolumeError
from covidseg_runtime.pacs.receiver import listen
from covidseg_runtime.pacs.sender import Destination, SendError
from covidseg_runtime.pacs.series_queue import Job, SeriesQueue
from covidseg_runtime.pacs.settings import PacsSettings

# Folder of the series, folder for the results, the date and time they tell -> files to send.
Answer = Callable[[Path, Path, datetime], Sequence[Path]]
Report = Callable[[str], None]

_TICK_S = 0.2
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 300.0


class PacsNode:
    """A node beside an archive.

    Args:
        settings: Who it is.
        answer: Makes the results of a series.
        destination: Takes them.
        report: Gets a line an event; none tells who a patient is.
    """

    def __init__(self, settings: PacsSettings, answer: Answer, destination: Destination, report: Report) -> None:
        """Open the queue; what an earlier process left is in it."""
        self.queue = SeriesQueue(settings.queue, settings.limits)
        self._settings, self._answer = settings, answer
        self._destination, self._report = destination, report
        self._not_before: dict[str, tuple[float, float]] = {}  # key -> monotonic time, wait
        self._made: dict[str, tuple[int, Sequence[Path]]] = {}  # key -> revision, results that wait to be taken

    def run(self, stop: threading.Event, on_listening: Callable[[int], None] = lambda port: None) -> None:
        """Work until `stop` is set; a series that is being answered then stays in the queue.

        Raises:
            OutputError: If the address cannot be listened on.
            SettingsError: If another node works on the queue.
        """
        with self.queue.held(), listen(self._settings, self.queue) as port:
            self._report(f"listening as {self._settings.ae_title} on {self._settings.host}:{port}")
            on_listening(port)
            while not stop.is_set():
                try:
                    worked = self._work()
                except (OutputError, OSError) as error:  # a full disk: who sends is told, and what is here stays
                    self._report(f"the queue cannot be written: {error} Tried again in {_FIRST_WAIT_S:g} s")
                    stop.wait(_FIRST_WAIT_S)
                    continue
                if not worked:
                    stop.wait(min(_TICK_S, self._settings.settle_s))

    def _work(self) -> bool:
        """Queue what is whole, and answer the first series whose time has come; whether there was one."""
        for key in self.queue.settle(self._settings.settle_s):
            self._report(f"{key}: whole, queued")
        self.queue.forget_answered(self._settings.keep_answered_s)
        for job in self.queue.queued():
            if time.monotonic() >= self._not_before.get(job.key, (0.0, 0.0))[0]:
                self._answer_one(job)
                return True
        return False

    def _answer_one(self, job: Job) -> None:
        began = time.monotonic()
        try:
            files = self._results_of(job)
            self._destination.send(files)
        except SegmentationCancelled:
            self._report(f"{job.key}: stopped, stays queued")
        except (SendError, OutputError, OSError) as error:  # the archive or the disk may be well again later
            self._wait(job, str(error))
        except CovidsegError as error:
            self._fail(job, str(error))
        except Exception as error:  # our own fault, met by one series, must not take the others with it
            # What it says may tell who the patient is.
            self._fail(job, f"An unexpected {type(error).__name__}; covidseg segment on the same series shows where.")
        else:
            self._forget(job)
            self.queue.answered(job)
            self._report(f"{job.key}: answered with {len(files)} objects in {time.monotonic() - began:.1f} s")

    def _results_of(self, job: Job) -> Sequence[Path]:
        """The results, made once for each revision of a series, however often they are sent."""
        if job.refused:
            raise VolumeError(
                f"{job.refused} instances were refused, as the series or the disk held too much; send it again."
            )
        revision, files = self._made.get(job.key, (None, ()))
        if revision != job.revision:
            files = tuple(self._answer(job.folder, self.queue.results_of(job), job.when))
            self._made[job.key] = job.revision, files
        return files

    def _fail(self, job: Job, why: str) -> None:
        self._forget(job)
        self.queue.failed(job, why)
        self._report(f"{job.key}: failed: {why}")

    def _forget(self, job: Job) -> None:
        self._not_before.pop(job.key, None)
        self._made.pop(job.key, None)

    def _wait(self, job: Job, why: str) -> None:
        wait = min(_LONGEST_WAIT_S, 2 * self._not_before.get(job.key, (0.0, _FIRST_WAIT_S / 2))[1])
        self._not_before[job.key] = (time.monotonic() + wait, wait)
        self._report(f"{job.key}: {why} Tried again in {wait:g} s")
