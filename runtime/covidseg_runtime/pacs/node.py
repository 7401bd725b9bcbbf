"""The node: listens, waits until a series is whole, answers one after the other, sends back; until told to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from covidseg_runtime.errors import CovidsegError, OutputError, SegmentationCancelled
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

    def run(self, stop: threading.Event, on_listening: Callable[[int], None] = lambda port: None) -> None:
        """Work until `stop` is set; a series that is being answered then stays in the queue.

        Raises:
            OutputError: If the address cannot be listened on, or the queue not be written.
        """
        with listen(self._settings, self.queue) as port:
            self._report(f"listening as {self._settings.ae_title} on {self._settings.host}:{port}")
            on_listening(port)
            while not stop.is_set():
                for key in self.queue.settle(self._settings.settle_s):
                    self._report(f"{key}: whole, queued")
                worked = self._answer_next(stop)
                self.queue.forget_answered(self._settings.keep_answered_s)
                if not worked:
                    stop.wait(min(_TICK_S, self._settings.settle_s))

    def _answer_next(self, stop: threading.Event) -> bool:
        """Answer the first series whose time has come; whether there was one."""
        for job in self.queue.queued():
            if time.monotonic() >= self._not_before.get(job.key, (0.0, 0.0))[0]:
                self._answer_one(job, stop)
                return True
        return False

    def _answer_one(self, job: Job, stop: threading.Event) -> None:
        began = time.monotonic()
        try:
            files = self._answer(job.folder, self.queue.results_of(job), job.when)
            self._destination.send(files)
        except SegmentationCancelled:
            self._report(f"{job.key}: stopped, stays queued")
            return
        except (SendError, OutputError) as error:  # the archive or the disk may be well again later
            self._wait(job, str(error))
            return
        except CovidsegError as error:
            self._report(f"{job.key}: failed: {error}")
            self.queue.failed(job, str(error))
            return
        self._not_before.pop(job.key, None)
        self.queue.answered(job)
        self._report(f"{job.key}: answered with {len(files)} objects in {time.monotonic() - began:.1f} s")

    def _wait(self, job: Job, why: str) -> None:
        wait = min(_LONGEST_WAIT_S, 2 * self._not_before.get(job.key, (0.0, _FIRST_WAIT_S / 2))[1])
        self._not_before[job.key] = (time.monotonic() + wait, wait)
        self._report(f"{job.key}: {why} Tried again in {wait:g} s")
