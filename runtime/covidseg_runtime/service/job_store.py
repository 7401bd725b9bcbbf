"""All jobs of a service: what waits, what is worked on, what ended; bounded in number and in bytes.

What callers ask about is in memory; what must outlive the process is in `JobFolders`. A change of state is made on disk
first and known afterwards.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from covidseg_runtime.errors import CovidsegError, OutputError
from covidseg_runtime.service.job_folders import MOST_GONE, JobFolders
from covidseg_runtime.service.jobs import STATES, Job, JobState, Outcome, now
from covidseg_runtime.service.settings import ServiceLimits

_JOBS_LOOKED_BACK_AT = 20
_FIRST_GUESS_S = 5.0
_MOST_SECONDS_TO_WAIT = 600


class QueueFullError(CovidsegError):
    """As many jobs wait as may."""


class StorageFullError(CovidsegError):
    """Uploads and results take as much room as they may."""


class KeyInUseError(CovidsegError):
    """An upload with the same idempotency key is still coming in."""


class UnknownJobError(CovidsegError):
    """There is no such job."""


class GoneJobError(UnknownJobError):
    """There was such a job; it was removed, or its time is over."""


@dataclass(frozen=True)
class Admission:
    """A place in the queue, and room on the disk, for an upload that may come in.

    Attributes:
        job_id: Of the job that it may become.
        folder: Where the upload goes.
        size: Bytes kept free for it.
        key: sha256 of its idempotency key, if it has one.
    """

    job_id: str
    folder: Path
    size: int
    key: str | None


class JobStore:
    """The jobs; threads may use it together."""

    def __init__(self, folders: JobFolders, limits: ServiceLimits, keep_s: float) -> None:
        """Know no job yet; `held` reads them."""
        self._folders, self._limits, self._keep = folders, limits, timedelta(seconds=keep_s)
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[str] = deque()
        self._admitted: dict[str, Admission] = {}
        self._cancels: dict[str, threading.Event] = {}  # of those that are worked on
        self._cancelled: set[str] = set()
        self._gone: dict[str, None] = {}
        self._seconds: deque[float] = deque(maxlen=_JOBS_LOOKED_BACK_AT)
        self._changed = threading.Condition()
        self._moving = threading.RLock()  # held over changes on disk; taken before _changed, never after

    @contextmanager
    def held(self) -> Iterator[None]:
        """Read what an earlier process left, and keep others off it, while the block runs.

        Raises:
            SettingsError: If another process holds the folder.
            OutputError: If it is damaged.
        """
        with self._folders.held():
            jobs, gone = self._folders.load()
            self._jobs = {job.id: job for job in jobs}
            self._waiting = deque(job.id for job in jobs if not job.is_finished)
            self._gone = dict.fromkeys(gone)
            yield

    def admit(self, size: int, key: str | None = None) -> Admission:
        """Keep a place for an upload of at most so many bytes; give it back by `accept` or `abandon`.

        Raises:
            QueueFullError, StorageFullError, KeyInUseError: If there is none.
            OutputError: If the disk cannot be written.
        """
        free = self._folders.free_bytes()
        with self._changed:
            if any(key is not None and key == one.key for one in self._admitted.values()):
                raise KeyInUseError("An upload with this Idempotency-Key is still coming in; ask again when it ended.")
            if len(self._waiting) + len(self._admitted) >= self._limits.queue:
                raise QueueFullError(f"{self._limits.queue} jobs wait, as many as may; try again later.")
            if len(self._jobs) + len(self._admitted) >= self._limits.jobs:
                raise StorageFullError(
                    f"{self._limits.jobs} jobs are kept, as many as may; remove those whose results you have."
                )
            if self._room(free) < size:
                raise StorageFullError(
                    "There is no room for the upload; remove jobs whose results you have, or try again later."
                )
            job_id = secrets.token_hex(16)
            # Counted before its folder is made, so that nobody else takes the place meanwhile.
            self._admitted[job_id] = Admission(job_id, Path(), size, key)
        try:
            admission = Admission(job_id, self._folders.incoming(job_id), size, key)
        except BaseException:
            self._give_back(job_id)
            raise
        return admission

    def accept(self, admission: Admission, job: Job) -> Job:
        """An upload is whole: its job waits, and outlives the process.

        Raises:
            OutputError: If the disk cannot be written; the admission is still to be given back.
        """
        sized = replace(job, size=(admission.folder / job.scan).stat().st_size)
        self._folders.queue(sized)
        with self._changed:
            del self._admitted[admission.job_id]
            self._jobs[job.id] = sized
            self._waiting.append(job.id)
            self._changed.notify_all()
        return sized

    def abandon(self, admission: Admission) -> None:
        """An upload did not become a job."""
        self._folders.drop_incoming(admission.job_id)
        self._give_back(admission.job_id)

    def _give_back(self, job_id: str) -> None:
        with self._changed:
            self._admitted.pop(job_id, None)

    def begin(self, cancel: threading.Event, timeout: float) -> Job | None:
        """The job that waits longest, from now on worked on; None if there is none within so many seconds.

        Args:
            cancel: Is set when somebody cancels the job.
            timeout: In seconds.

        Raises:
            OutputError: If the disk cannot be written; the job waits on.
        """
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout)
        with self._moving:
            if not self._waiting:
                return None
            job = self._jobs[self._waiting[0]]
            begun = replace(job, state="running", attempts=job.attempts + 1, started=now())
            # How often it was begun is known before it can end the process.
            self._folders.note(begun)
            with self._changed:
                self._waiting.popleft()
                self._jobs[job.id] = begun
                self._cancels[job.id] = cancel
            if self.is_cancelled(job.id):
                cancel.set()
        return begun

    def wake(self) -> None:
        """Let those who wait in `begin` come back at once."""
        with self._changed:
            self._changed.notify_all()

    def progress(self, job_id: str, done: int, total: int) -> None:
        """Tiles of a job that is worked on."""
        with self._changed:
            self._jobs[job_id] = replace(self._jobs[job_id], tiles=(done, total))

    def is_cancelled(self, job_id: str) -> bool:
        """Whether somebody cancelled the job while it was worked on."""
        return job_id in self._cancelled

    def end(self, job_id: str, outcome: Outcome) -> Job:
        """Make the end of a job known; one that was cancelled meanwhile has no results.

        Raises:
            OutputError: If the disk cannot be written; the job is still worked on.
        """
        with self._moving:
            job = self._jobs[job_id]
            ended = self._folders.finish(job.ended(Outcome("cancelled") if self.is_cancelled(job_id) else outcome))
            with self._changed:
                self._jobs[job_id] = ended
                self._cancels.pop(job_id, None)
                self._cancelled.discard(job_id)
                if ended.state == "done" and ended.started and ended.finished:
                    self._seconds.append((ended.finished - ended.started).total_seconds())
        return ended

    def put_back(self, job_id: str, *, attempts: int) -> None:
        """A job was not ended, and waits again, as the first; one that was cancelled meanwhile ends.

        Args:
            job_id: Its id.
            attempts: How often it counts as begun.

        Raises:
            OutputError: If the disk cannot be written; it waits all the same.
        """
        with self._moving:
            try:
                if self.is_cancelled(job_id):
                    self.end(job_id, Outcome("cancelled"))
                    return
            except OutputError:  # it is still cancelled, and ends when it is begun again
                self._wait_again(job_id, attempts)
                raise
            self._folders.note(self._wait_again(job_id, attempts))

    def _wait_again(self, job_id: str, attempts: int) -> Job:
        job = replace(self._jobs[job_id].queued_again(), attempts=attempts)
        with self._changed:
            self._jobs[job_id] = job
            self._cancels.pop(job_id, None)
            self._waiting.appendleft(job_id)
        return job

    def cancel_or_remove(self, job_id: str) -> Job | None:
        """Cancel what is not finished, remove what is; None: it is removed.

        A job that is worked on ends soon afterwards; it is still running when this returns.

        Raises:
            UnknownJobError: If there is none.
            OutputError: If the disk cannot be written; nothing is changed.
        """
        with self._moving:
            job = self.get(job_id)
            if job.is_finished:
                self._remove(job_id)
                return None
            if job_id in self._cancels:
                self._cancelled.add(job_id)
                self._cancels[job_id].set()
                return job
            ended = self._folders.finish(job.ended(Outcome("cancelled")))
            with self._changed:
                self._waiting.remove(job_id)
                self._jobs[job_id] = ended
                self._cancelled.discard(job_id)
            return ended

    def remove_expired(self) -> int:
        """Remove what was kept long enough; how many there were.

        Raises:
            OutputError: If the disk cannot be written.
        """
        with self._moving:
            with self._changed:
                expired = [job.id for job in self._jobs.values() if self._is_expired(job)]
            for job_id in expired:
                self._remove(job_id)
        return len(expired)

    def _remove(self, job_id: str) -> None:
        self._folders.remove(job_id)
        with self._changed:
            self._jobs.pop(job_id)
            self._gone[job_id] = None
            oldest = next(iter(self._gone)) if len(self._gone) > MOST_GONE else None
            if oldest is not None:
                del self._gone[oldest]
        if oldest is not None:
            self._folders.forget_gone(oldest)

    def get(self, job_id: str) -> Job:
        """A job.

        Raises:
            GoneJobError: If it was removed, or its time is over.
            UnknownJobError: If there never was one.
        """
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None and not self._is_expired(job):
                return job
            if job is not None or job_id in self._gone:
                raise GoneJobError("This job was removed, or its time is over; send the scan again.")
        raise UnknownJobError("There is no such job; POST /v1/jobs makes one, GET /v1/jobs lists them.")

    def of_key(self, key: str) -> Job | None:
        """The job that was made with an idempotency key, as long as it is kept."""
        with self._changed:
            found = (job for job in self._jobs.values() if job.key == key and not self._is_expired(job))
            return next(found, None)

    def newest_first(self) -> list[Job]:
        """Every job that is kept."""
        with self._changed:
            return [job for job in reversed(self._jobs.values()) if not self._is_expired(job)]

    def ahead_of(self, job_id: str) -> int | None:
        """How many jobs wait before this one; None where it does not wait."""
        with self._changed:
            return self._waiting.index(job_id) if job_id in self._waiting else None

    def counts(self) -> Mapping[JobState, int]:
        """Number of jobs by state."""
        with self._changed:
            counts = dict.fromkeys(STATES, 0)
            for job in self._jobs.values():
                counts[job.state] += 1
            return counts

    def queue_length(self) -> int:
        """Jobs that wait, those that are being uploaded among them; what the limit is for."""
        with self._changed:
            return len(self._waiting) + len(self._admitted)

    def used_bytes(self) -> int:
        """Bytes of uploads and results, those included that are kept free for uploads."""
        with self._changed:
            return self._used()

    def has_room(self) -> bool:
        """Whether an upload of the largest size would be taken."""
        free = self._folders.free_bytes()
        with self._changed:
            admitted = len(self._admitted)
            is_full = len(self._waiting) + admitted >= self._limits.queue
            is_full = is_full or len(self._jobs) + admitted >= self._limits.jobs
            return not is_full and self._room(free) >= self._limits.upload_bytes

    def seconds_to_wait(self) -> int:
        """After how long a place may be free: a job's mean of late, in whole seconds."""
        with self._changed:
            return min(_MOST_SECONDS_TO_WAIT, 1 + int(fmean(self._seconds) if self._seconds else _FIRST_GUESS_S))

    def expires(self, job: Job) -> str | None:
        """When a finished job is removed, in UTC."""
        return None if job.finished is None else (job.finished + self._keep).isoformat(timespec="milliseconds")

    def _room(self, free: int) -> int:
        """Bytes for another upload, of so many that are free on the disk."""
        # What has come in of an upload is no longer free, and counts twice until all of it is here.
        return min(self._limits.disk_bytes - self._used(), free - self._limits.free_bytes - self._coming())

    def _used(self) -> int:
        return sum(job.size for job in self._jobs.values()) + self._coming()

    def _coming(self) -> int:
        return sum(one.size for one in self._admitted.values())

    def _is_expired(self, job: Job) -> bool:
        return job.finished is not None and job.finished + self._keep <= now()
