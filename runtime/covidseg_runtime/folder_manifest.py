"""manifest.jsonl: what was done with a folder of scans, one JSON object a line.

A line is appended when the files of its scan are whole, and synced. What a killed process left of a line has no line
end; it is not read, and cut off before the next line is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from covidseg_runtime.errors import OutputError, SettingsError

MANIFEST_SCHEMA_VERSION = 1
_ALL_MANIFESTS = "manifest*.jsonl"


@dataclass(frozen=True)
class ScanRecord:
    """One line: what became of one scan.

    Attributes:
        scan: Path below the folder of scans, with "/".
        status: "ok" or "failed".
        input: "size_bytes" and "mtime_ns" of the scan, and "sha256" where it was segmented; empty if it is gone.
        settings: Model, engine, precision and settings; results of other ones are made again.
        finished: UTC, ISO 8601.
        seconds: What the segmentation took, reading and writing aside.
        outputs: "labels" and "report": "file" below the folder of results, and "sha256".
        measures: The main ones of the report.
        warnings: What a reader has to know.
        error: Why it failed, in one sentence.
        exit_code: The one that `covidseg segment` has for this scan alone.
    """

    scan: str
    status: Literal["ok", "failed"]
    input: Mapping[str, Any]
    settings: Mapping[str, Any]
    finished: str
    seconds: float | None = None
    outputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    measures: Mapping[str, float | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: str | None = None
    exit_code: int = 0


@dataclass(frozen=True)
class DoneScan:
    """What a line "ok" tells of a scan that need not be done again."""

    settings: Mapping[str, Any]
    size_bytes: int
    mtime_ns: int
    sha256: str
    report_sha256: str


class Manifest:
    """A manifest that this process alone appends to; get one by `open_manifest`."""

    def __init__(self, path: Path, descriptor: int, done: Mapping[str, tuple[DoneScan, ...]]) -> None:
        """Use a file that is open and locked."""
        self.path = path
        self.done = done
        self._descriptor = descriptor

    def append(self, record: ScanRecord) -> None:
        """Write one line and sync it.

        Raises:
            OutputError: if there is no room, or the folder is gone.
        """
        # ASCII: a file name need not be UTF-8, and comes back from its escapes as it was.
        line = json.dumps({"schema_version": MANIFEST_SCHEMA_VERSION, **asdict(record)}, allow_nan=False) + "\n"
        with _told_as("written", self.path):
            written = os.write(self._descriptor, line.encode("ascii"))
            if written < len(line):
                raise OSError(0, "no room for a whole line")
            os.fsync(self._descriptor)


@contextmanager
def open_manifest(folder: Path, name: str) -> Iterator[Manifest]:
    """Make the folder of results if need be, and open a manifest in it to append to.

    Args:
        folder: For results.
        name: Of the manifest; what other ones in the folder tell is known to it, too.

    Raises:
        OutputError: if the folder cannot be written to.
        SettingsError: if another process holds the manifest.
    """
    path = folder / name
    with _told_as("written", path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        with _told_as("written", path):
            _lock(descriptor, path)
            _cut_torn_line(descriptor, path)
        yield Manifest(path, descriptor, _read_done(folder))
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    """Hold the file until it is closed, or its process ends, however it ends."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SettingsError(
            f"another covidseg is working on {path}; wait for it, or give each its --part-id"
        ) from error


def _cut_torn_line(descriptor: int, path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.ftruncate(descriptor, whole)


def _read_done(folder: Path) -> dict[str, tuple[DoneScan, ...]]:
    """Scan -> what the lines "ok" of all manifests of a folder tell; lines that are not whole are passed over."""
    done: dict[str, tuple[DoneScan, ...]] = {}
    for path in sorted(folder.glob(_ALL_MANIFESTS)):
        with _told_as("read", path):
            lines = path.read_bytes().split(b"\n")
        for line in lines:
            for scan, entry in _parse(line):
                done[scan] = (*done.get(scan, ()), entry)
    return done


def _parse(line: bytes) -> Iterator[tuple[str, DoneScan]]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return
    match record:
        case {
            "scan": str(scan),
            "status": "ok",
            "settings": dict(settings),
            "input": {"size_bytes": int(size), "mtime_ns": int(mtime), "sha256": str(sha256)},
            "outputs": {"report": {"sha256": str(report)}},
        }:
            yield scan, DoneScan(settings, size, mtime, sha256, report)


@contextmanager
def _told_as(deed: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be {deed}: {error.strerror}; mend that, or give another place.") from error
