"""The threads that work on jobs, one after the other, until they are told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from covidseg_runtime.errors import CovidsegError, OutputError, SegmentationCancelled, VolumeError
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.service.job_folders import JobFolders
from covidseg_runtime.service.job_store import JobStore
from covidseg_runtime.service.jobs import Failure, Job, Outcome
from covidseg_runtime.service.scan_job import Interest, run_scan_job

_TICK_S = 1.0
_WAIT_FOR_DISK_S = 5.0


class Watcher(Protocol):
    """Who counts what workers do."""

    def job_ended(self, job: Job) -> None:
        """A job has its end."""


class Workers:
    """Threads around one segmenter.

    Args:
        segmenter: It stays the caller's.
        store: Whose jobs they work on.
        folders: Where those lie.
        attempts: How often a job is begun.
        report: Gets a line an event; none tells who a patient is.
        watcher: Counts.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        store: JobStore,
        folders: JobFolders,
        attempts: int,
        report: Callable[[str], None],
        watcher: Watcher,
    ) -> None:
        """Keep them; nothing is begun."""
        self._segmenter, self._store, self._folders = segmenter, store, folders
        self._attempts, self._report, self._watcher = attempts, report, watcher
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._cancels: set[threading.Event] = set()
        self._threads: list[threading.Thread] = []

    def start(self, count: int) -> None:
        """Begin to work, with so many threads."""
        self._threads = [threading.Thread(target=self._run, name=f"covidseg-job-{n}") for n in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End soon: what is being worked on waits again; come back when every thread has ended."""
        with self._lock:
            self._stop.set()
            for cancel in self._cancels:
                cancel.set()
        self._store.wake()
        for thread in self._threads:
            thread.join()

    @property
    def are_well(self) -> bool:
        """Whether they work, all of them."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._store.remove_expired()
                self._work()
            except (OutputError, OSError) as error:  # a full disk: what is here stays
                self._report(f"the folder cannot be written: {error} Tried again in {_WAIT_FOR_DISK_S:g} s")
                self._stop.wait(_WAIT_FOR_DISK_S)

    def _work(self) -> None:
        """Work on the next job, if there is one soon."""
        cancel = threading.Event()
        with self._lock:
            if self._stop.is_set():
                return
            self._cancels.add(cancel)
        try:
            job = self._store.begin(cancel, _TICK_S)
            if job is not None:
                self._work_on(job, cancel)
        finally:
            with self._lock:
                self._cancels.discard(cancel)

    def _work_on(self, job: Job, cancel: threading.Event) -> None:
        try:
            outcome = self._outcome_of(job, cancel)
            ended = self._store.end(job.id, outcome)
        except SegmentationCancelled:
            # Whose end is not the job's fault does not count as an attempt.
            self._store.put_back(job.id, attempts=job.attempts - 1)
            self._report(f"{job.id}: stopped, waits again")
        except (OutputError, OSError):
            with suppress(OutputError):  # it waits, whether that can be written or not
                self._store.put_back(job.id, attempts=job.attempts)
            raise
        else:
            self._watcher.job_ended(ended)
            self._report(f"{job.id}: {ended.state}{_why(ended.outcome)}")

    def _outcome_of(self, job: Job, cancel: threading.Event) -> Outcome:
        """Do what is asked for.

        Raises:
            SegmentationCancelled: If all work is to end, and nobody cancelled this job.
            OutputError: If the disk is to blame, and may be better when it is tried again.
        """
        if job.attempts > self._attempts:
            return _failed(f"This scan was begun {self._attempts} times, and never ended; covidseg segment shows why.")
        if not self._folders.scan_of(job).exists():
            return _failed("The upload is gone from the service's folder; send the scan again.")
        interest = Interest(partial(self._store.progress, job.id), cancel)
        try:
            results = self._folders.working(job.id)
            missing = run_scan_job(self._segmenter, job, self._folders.scan_of(job), results, interest)
        except SegmentationCancelled:
            if self._store.is_cancelled(job.id):
                return Outcome("cancelled")
            raise
        except OutputError:
            if job.attempts < self._attempts:
                raise
            return _failed("The results could not be written; ask whoever runs this service to look at its disk.")
        except CovidsegError as error:
            # Where it lies is nobody's business but the service's.
            return Outcome(
                "failed", Failure(str(error).replace(f"{self._folders.scan_of(job).parent}/", ""), error.exit_code)
            )
        except MemoryError:
            return _failed("There is not enough memory for this scan.")
        except Exception as error:  # our own fault, met by one scan, must not take the others with it
            # What it says may tell who the patient is.
            return _failed(f"An unexpected {type(error).__name__}; covidseg segment on the same scan shows where.")
        return Outcome("done", missing=missing)


def _why(outcome: Outcome | None) -> str:
    """For the log; the sentence on a scan may name one of its files, and with it a patient."""
    failure = None if outcome is None else outcome.failure
    if failure is None:
        return ""
    told = "unsuitable scan, its job says why" if failure.exit_code == VolumeError.exit_code else failure.sentence
    return f": {told}"


def _failed(sentence: str) -> Outcome:
    return Outcome("failed", Failure(sentence, CovidsegError.exit_code))
