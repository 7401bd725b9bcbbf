"""Series on disk, in one of four states; a state is a folder, and a change of state one rename.

    QUEUE/receiving/KEY/   instances come in
    QUEUE/queued/KEY/      whole, waits to be answered or is being answered; job.json says when it was whole
    QUEUE/answered/KEY/    results were accepted by the archive; stays for a while, for late instances
    QUEUE/failed/KEY/      cannot be answered; reason.json says why

KEY is a hash of the study's and the series' UID: nothing that came over the network is ever a name on disk. A process
that is killed leaves every series in one of the states; what was queued is answered by the next one. Results have the
same UIDs and the same bytes then, so an archive that had some of them already keeps each once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from covidseg_runtime.errors import OutputError
from covidseg_runtime.pacs.settings import Limits
from covidseg_runtime.volume_files import write_bytes_atomic, write_json

STATES = ("receiving", "queued", "answered", "failed")
_JOB, _REASON = "job.json", "reason.json"
_INSTANCE = ".dcm"


class QueueFullError(OutputError):
    """A limit of the queue is reached; the caller may try again later."""


@dataclass(frozen=True)
class Job:
    """One whole series.

    Attributes:
        key: Its name in the queue.
        folder: Where its instances lie.
        when: When it was whole: the date and time that its results tell.
    """

    key: str
    folder: Path
    when: datetime


class SeriesQueue:
    """The states of all series; threads may use it together, processes not."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        """Open the queue, or make it.

        Raises:
            OutputError: If the folder cannot be made.
        """
        self._folder = folder
        self._limits = limits
        self._lock = threading.Lock()
        self._taken: dict[str, tuple[int, int]] = {}  # of series that come in: instances and bytes
        try:
            for state in (*STATES, "results"):
                (folder / state).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"The queue {folder} cannot be made: {error.strerror}.") from error

    def store(self, study_uid: str, series_uid: str, instance_uid: str, content: bytes) -> None:
        """Take one instance in; one that is there already is replaced.

        Raises:
            QueueFullError: If the series or the disk holds too much.
            OutputError: If it cannot be written.
        """
        if shutil.disk_usage(self._folder).free < self._limits.free_bytes + len(content):
            raise QueueFullError(f"Less than {self._limits.free_bytes >> 20} MiB are free for the queue.")
        key = key_of(study_uid, series_uid)
        with self._lock:
            folder = self._place("receiving", key)
            folder.mkdir(exist_ok=True)
            count, size = self._taken.get(key) or _taken(folder)
            if count >= self._limits.instances or size + len(content) > self._limits.series_bytes:
                raise QueueFullError("The series holds more than this node takes.")
            write_bytes_atomic(folder / f"{_digest(instance_uid)}{_INSTANCE}", content)
            self._taken[key] = count + 1, size + len(content)

    def settle(self, seconds: float) -> list[str]:
        """Queue every series of which nothing came for so long; their keys come back."""
        settled = []
        with self._lock:
            for folder in self._of_state("receiving"):
                if time.time() - folder.stat().st_mtime >= seconds:
                    self._taken.pop(folder.name, None)
                    self._queue(folder)
                    settled.append(folder.name)
        return settled

    def _queue(self, folder: Path) -> None:
        """Move a series from receiving to queued, together with what of it is there already."""
        key, queued = folder.name, self._place("queued", folder.name)
        for state in ("answered", "failed"):
            earlier = self._place(state, key)
            if earlier.is_dir():
                _move_instances(earlier, folder)
                shutil.rmtree(earlier)
        write_json(folder / _JOB, {"when": datetime.now().isoformat(timespec="seconds")})
        if queued.is_dir():  # late instances of a series that waits: it is whole later
            _move_instances(queued, folder)
            shutil.rmtree(queued)
        folder.rename(queued)
        _sync(queued.parent)

    def queued(self) -> Iterator[Job]:
        """Series that wait, the longest waiting first."""
        found = sorted(self._of_state("queued"), key=lambda folder: (folder / _JOB).stat().st_mtime_ns)
        for folder in found:
            when = datetime.fromisoformat(json.loads((folder / _JOB).read_text("utf-8"))["when"])
            yield Job(folder.name, folder, when)

    def results_of(self, job: Job) -> Path:
        """An empty folder for the results of a job."""
        folder = self._place("results", job.key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def answered(self, job: Job) -> None:
        """The archive has the results."""
        self._leave(job, "answered")

    def failed(self, job: Job, reason: str) -> None:
        """There will be no results; `reason` is a sentence without patient data."""
        write_json(job.folder / _REASON, {"reason": reason})
        self._leave(job, "failed")

    def _leave(self, job: Job, state: str) -> None:
        with self._lock:
            place = self._place(state, job.key)
            shutil.rmtree(place, ignore_errors=True)
            job.folder.rename(place)
            os.utime(place)
            _sync(place.parent)
        shutil.rmtree(self._place("results", job.key), ignore_errors=True)

    def forget_answered(self, seconds: float) -> None:
        """Delete what was answered so long ago."""
        with self._lock:
            for folder in self._of_state("answered"):
                if time.time() - folder.stat().st_mtime >= seconds:
                    shutil.rmtree(folder)

    def counts(self) -> dict[str, int]:
        """Number of series by state."""
        return {state: len(self._of_state(state)) for state in STATES}

    def reasons(self) -> dict[str, str]:
        """Key of each failed series, and why it failed."""
        found = {}
        for folder in self._of_state("failed"):
            if (folder / _REASON).is_file():
                found[folder.name] = str(json.loads((folder / _REASON).read_text("utf-8"))["reason"])
        return found

    def _of_state(self, state: str) -> list[Path]:
        return sorted(path for path in (self._folder / state).iterdir() if path.is_dir())

    def _place(self, state: str, key: str) -> Path:
        return self._folder / state / key


def key_of(study_uid: str, series_uid: str) -> str:
    """Name of a series on disk."""
    return _digest(f"{study_uid}\n{series_uid}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


def _taken(folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in folder.glob(f"*{_INSTANCE}")]
    return len(sizes), sum(sizes)


def _move_instances(source: Path, target: Path) -> None:
    for path in source.glob(f"*{_INSTANCE}"):
        if not (target / path.name).exists():
            path.rename(target / path.name)


def _sync(folder: Path) -> None:
    """Make a rename outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
