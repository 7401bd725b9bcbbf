"""Jobs on disk: a state is a folder, and a change of state one rename.

    FOLDER/incoming/ID/   an upload comes in; gone at the next start
    FOLDER/queued/ID/     scan and job.json: waits, or is being worked on
    FOLDER/working/ID/    results that are being made; gone at the next start
    FOLDER/finished/ID/   job.json and the results, until they are removed
    FOLDER/gone/ID        an empty file: there was such a job

ID is drawn by chance: nothing that came over the network is ever a name on disk. However the process ends, a job that
was accepted is in `queued` or `finished`, whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from covidseg_runtime.errors import OutputError, SettingsError
from covidseg_runtime.folder_lock import held_by_one
from covidseg_runtime.service.jobs import RESULT_FILES, Job, job_from_json, job_to_json
from covidseg_runtime.volume_files import sync_folder, write_json

_FOLDERS = ("incoming", "queued", "working", "finished", "gone")
_JOB, _MARK, _LOCK = "job.json", "covidseg-service.json", "lock"
MOST_GONE = 10_000  # ids of jobs that are no more


class JobFolders:
    """The folder of a service; its methods may be called by threads as long as no two work on the same job."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, or make it; what lies in it is its owner's alone.

        Raises:
            SettingsError: If it holds something else.
            OutputError: If it cannot be made.
        """
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (folder / _MARK).is_file() and any(folder.iterdir()):
                raise SettingsError(f"{folder} holds something else than a service's jobs; give a folder of its own.")
            if not (folder / _MARK).is_file():
                write_json(folder / _MARK, {"schema_version": 1, "content": "jobs of covidseg serve"})
            for name in _FOLDERS:  # private also where somebody else made the folder
                (folder / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise OutputError(f"The folder {folder} cannot be made: {error.strerror}.") from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other services off the folder while the block runs.

        Raises:
            SettingsError: If another process holds it.
        """
        refusal = f"Another service works in {self._folder}; stop it, or give each its --folder."
        with held_by_one(self._folder / _LOCK, refusal):
            yield

    def load(self) -> tuple[list[Job], list[str]]:
        """Every job, the oldest first, and the ids of those that are gone; what was half done is cleared away."""
        for name in ("incoming", "working"):
            for left in (self._folder / name).iterdir():
                shutil.rmtree(left)
        gone = [mark.name for mark in sorted((self._folder / "gone").iterdir(), key=_modified)]
        for name in gone[:-MOST_GONE]:
            (self._folder / "gone" / name).unlink()
        finished = {job.id: job for job in self._read("finished", set(gone))}
        queued = {job.id: job.queued_again() for job in self._read("queued", {*gone, *finished})}
        jobs = sorted((*finished.values(), *queued.values()), key=lambda job: job.accepted)
        return jobs, gone[-MOST_GONE:]

    def _read(self, state: str, ended: set[str]) -> Iterator[Job]:
        """Jobs of a folder, but for those that got further before their folder here was removed."""
        for folder in (self._folder / state).iterdir():
            try:
                if folder.name in ended:
                    shutil.rmtree(folder)
                    continue
                yield job_from_json(json.loads((folder / _JOB).read_text("utf-8")))
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise OutputError(f"{folder / _JOB} is damaged; remove its folder.") from error

    def incoming(self, job_id: str) -> Path:
        """A new folder for an upload.

        Raises:
            OutputError: If it cannot be made.
        """
        folder = self._folder / "incoming" / job_id
        with _writing(folder):
            folder.mkdir()
        return folder

    def drop_incoming(self, job_id: str) -> None:
        """Forget an upload."""
        shutil.rmtree(self._folder / "incoming" / job_id, ignore_errors=True)

    def queue(self, job: Job) -> None:
        """An upload is whole: from now on its job outlives the process."""
        folder = self._folder / "incoming" / job.id
        write_json(folder / _JOB, job_to_json(job))
        self._move(folder, self._folder / "queued" / job.id)

    def note(self, job: Job) -> None:
        """Keep what changed of a job that waits or is being worked on, even if somebody removed its folder."""
        folder = self._folder / "queued" / job.id
        with _writing(folder):
            folder.mkdir(exist_ok=True)
        write_json(folder / _JOB, job_to_json(job))

    def scan_of(self, job: Job) -> Path:
        """The upload of a job that is not finished."""
        return self._folder / "queued" / job.id / job.scan

    def working(self, job_id: str) -> Path:
        """An empty folder for results.

        Raises:
            OutputError: If it cannot be made.
        """
        folder = self._folder / "working" / job_id
        with _writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        return folder

    def finish(self, job: Job) -> Job:
        """Make an end known; the upload is removed. The job comes back with its results and their size."""
        folder = self._folder / "working" / job.id
        if job.state != "done":
            self.working(job.id)
        results = tuple(name for name, file in RESULT_FILES.items() if (folder / file).is_file())
        ended = replace(job, results=results, size=size_of(folder))
        write_json(folder / _JOB, job_to_json(ended))
        self._move(folder, self._folder / "finished" / job.id)
        shutil.rmtree(self._folder / "queued" / job.id, ignore_errors=True)
        return ended

    def remove(self, job_id: str) -> None:
        """Remove a finished job; that there was one stays known."""
        with _writing(self._folder):
            (self._folder / "gone" / job_id).touch()
            # Emptied under another name: nobody meets half of it, and what is left of it the next start clears away.
            emptied = self._folder / "working" / f"{job_id}.removed"
            with suppress(FileNotFoundError):  # somebody made room by hand
                (self._folder / "finished" / job_id).rename(emptied)
        shutil.rmtree(emptied, ignore_errors=True)

    def forget_gone(self, job_id: str) -> None:
        """Do not even know any more that there was such a job."""
        (self._folder / "gone" / job_id).unlink(missing_ok=True)

    def result(self, job: Job, name: str) -> Path:
        """Where a result of a finished job lies."""
        return self._folder / "finished" / job.id / RESULT_FILES[name]

    def free_bytes(self) -> int:
        """Free on the disk.

        Raises:
            OutputError: If it cannot be told.
        """
        with _writing(self._folder):
            return shutil.disk_usage(self._folder).free

    def _move(self, folder: Path, place: Path) -> None:
        with _writing(place):
            folder.rename(place)
            sync_folder(place.parent)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _modified(path: Path) -> float:
    return path.stat().st_mtime
