"""Series on disk, in one of four states; a state is a folder, and a change of state one rename.

    QUEUE/receiving/KEY/   instances come in
    QUEUE/queued/KEY/      whole, waits to be answered or is being answered; job.json says when it was whole
    QUEUE/answered/KEY/    results were accepted by the archive; stays for a while, for late instances
    QUEUE/failed/KEY/      cannot be answered; reason.json says why

KEY is a hash of the study's and the series' UID: nothing that came over the network is ever a name on disk. A process
that is killed leaves every series in one of the states; what was queued is answered by the next one. Results have the
same UIDs and the same bytes then, so an archive that had some of them already keeps each once.

A series of which an instance was refused (limits, full disk) is not whole, however quiet it is: it is queued with the
names of what is missing, and fails, until those instances come after all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from covidseg_runtime.errors import OutputError
from covidseg_runtime.folder_lock import held_by_one
from covidseg_runtime.pacs.settings import Limits
from covidseg_runtime.volume_files import sync_folder, write_bytes_atomic, write_json

STATES = ("receiving", "queued", "answered", "failed")
_JOB, _REASON, _LOCK = "job.json", "reason.json", "lock"
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
        revision: Another number when it was queued again, with late instances.
        refused: How many of its instances were refused and did not come again.
    """

    key: str
    folder: Path
    when: datetime
    revision: int = 0
    refused: int = 0


@dataclass
class _Incoming:
    """What is known of a series that comes in.

    Attributes:
        sizes: Name of each instance that is here, in any state -> bytes.
        refused: Names of those that were not taken.
        touched: When the last one came, monotonic.
    """

    sizes: dict[str, int]
    refused: set[str] = field(default_factory=set)
    touched: float = 0.0


class SeriesQueue:
    """The states of all series; threads may use it together, processes not."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        """Open the queue, or make it; the folders made for it are its owner's alone.

        Raises:
            OutputError: If the folder cannot be made.
        """
        self._folder = folder
        self._limits = limits
        self._lock = threading.Lock()
        self._incoming: dict[str, _Incoming] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for state in (*STATES, "results"):  # private also where somebody else made the queue's
                (folder / state).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise OutputError(f"The queue {folder} cannot be made: {error.strerror}.") from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other nodes off the queue while the block runs; the quiet of what comes in counts from now.

        Raises:
            SettingsError: If another process holds it.
        """
        refusal = f"Another node works on the queue {self._folder}; stop it, or give each its --queue."
        with held_by_one(self._folder / _LOCK, refusal):
            for folder in self._of_state("receiving"):
                os.utime(folder)  # while nobody listened, nothing could come
            yield

    def store(self, study_uid: str, series_uid: str, instance_uid: str, content: bytes) -> None:
        """Take one instance in; one that is there already is replaced.

        Raises:
            QueueFullError: If the series or the disk holds too much.
            OutputError: If it cannot be written.
        """
        key, name = key_of(study_uid, series_uid), f"{_digest(instance_uid)}{_INSTANCE}"
        with self._lock:
            incoming = self._incoming.get(key)
            if incoming is None:
                incoming = self._incoming[key] = _Incoming(self._sizes(key))
            incoming.touched = time.monotonic()
            try:
                self._write(self._place("receiving", key), name, content, incoming.sizes)
            except OutputError:
                if len(incoming.refused) < self._limits.instances:
                    incoming.refused.add(name)
                raise
            incoming.refused.discard(name)
            incoming.sizes[name] = len(content)

    def _write(self, folder: Path, name: str, content: bytes, sizes: dict[str, int]) -> None:
        others = len(sizes) - (name in sizes)
        size = sum(sizes.values()) - sizes.get(name, 0) + len(content)
        if others >= self._limits.instances or size > self._limits.series_bytes:
            raise QueueFullError("The series holds more than this node takes.")
        try:
            if shutil.disk_usage(self._folder).free < self._limits.free_bytes + len(content):
                raise QueueFullError(f"Less than {self._limits.free_bytes >> 20} MiB are free for the queue.")
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"The queue {self._folder} cannot be written: {error.strerror}.") from error
        write_bytes_atomic(folder / name, content)

    def _sizes(self, key: str) -> dict[str, int]:
        """Name of each instance of a series, in any state -> bytes."""
        places = [self._place(state, key) for state in STATES]
        return {path.name: path.stat().st_size for place in places for path in place.glob(f"*{_INSTANCE}")}

    def settle(self, seconds: float) -> list[str]:
        """Queue every series of which nothing came, refused or not, for so long; their keys come back."""
        settled = []
        with self._lock:
            for key in sorted({*self._incoming, *(folder.name for folder in self._of_state("receiving"))}):
                if self._is_quiet(key, seconds):
                    settled += [key] if self._queue(key) else []
                    self._incoming.pop(key, None)
        return settled

    def _is_quiet(self, key: str, seconds: float) -> bool:
        if key in self._incoming and time.monotonic() - self._incoming[key].touched < seconds:
            return False
        folder = self._place("receiving", key)
        return not folder.is_dir() or time.time() - folder.stat().st_mtime >= seconds

    def _queue(self, key: str) -> bool:
        """Move a series from receiving to queued, together with what of it is there already; whether there is one.

        Of a series that was queued, answered or failed, a late instance that was refused is as much a reason to queue
        it again as one that was taken.
        """
        folder, queued = self._place("receiving", key), self._place("queued", key)
        places = [place for state in ("answered", "failed") if (place := self._place(state, key)).is_dir()]
        lately = self._incoming[key].refused if key in self._incoming else set()
        if not any(folder.glob(f"*{_INSTANCE}")) and not (lately and (places or queued.is_dir())):
            shutil.rmtree(folder, ignore_errors=True)  # nothing was taken
            return False
        folder.mkdir(exist_ok=True)
        refused = lately | {name for place in (folder, queued, *places) for name in _read_refused(place)}
        for place in places:
            _move_instances(place, folder)
        # A series that waits gets the late instances, and never lacks what it had: killed here, it is answered so far.
        is_waiting = queued.is_dir()
        if is_waiting:
            for path in folder.glob(f"*{_INSTANCE}"):
                path.replace(queued / path.name)
        target = queued if is_waiting else folder
        missing = sorted(name for name in refused if not (target / name).exists())
        write_json(target / _JOB, {"when": datetime.now().isoformat(timespec="seconds"), "refused": missing})
        for place in (*places, *([folder] if is_waiting else ())):
            shutil.rmtree(place)
        if not is_waiting:
            folder.rename(queued)
        sync_folder(queued.parent)
        return True

    def queued(self) -> Iterator[Job]:
        """Series that wait, the longest waiting first."""
        found = sorted(self._of_state("queued"), key=lambda folder: (folder / _JOB).stat().st_mtime_ns)
        for folder in found:
            when = datetime.fromisoformat(json.loads((folder / _JOB).read_text("utf-8"))["when"])
            revision = (folder / _JOB).stat().st_mtime_ns
            yield Job(folder.name, folder, when, revision, len(_read_refused(folder)))

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
            sync_folder(place.parent)
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


def _read_refused(folder: Path) -> list[str]:
    """Names of the instances that a series lacks because they were refused."""
    if not (folder / _JOB).is_file():
        return []
    return list(json.loads((folder / _JOB).read_text("utf-8")).get("refused", []))


def _move_instances(source: Path, target: Path) -> None:
    for path in source.glob(f"*{_INSTANCE}"):
        if not (target / path.name).exists():
            path.rename(target / path.name)
