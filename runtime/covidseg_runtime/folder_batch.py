"""What is left of a folder of scans, and where it is recorded: the same whoever segments it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from covidseg_runtime.bundle import sha256_of
from covidseg_runtime.errors import SettingsError
from covidseg_runtime.folder_manifest import DoneScan, Manifest, ScanRecord, open_manifest
from covidseg_runtime.folder_scans import FolderJob, FolderScan, find_scans, remove_temporaries
from covidseg_runtime.scan_results import ScanState, failed_record

OnRecord = Callable[[ScanRecord], None]


@dataclass(frozen=True, eq=False)
class OpenFolder:
    """A job whose scans were found and whose part nobody else does.

    Attributes:
        job: What is asked for.
        scans: All scans of the part.
        manifest: Where they are recorded.
    """

    job: FolderJob
    scans: tuple[FolderScan, ...]
    manifest: Manifest


@contextmanager
def open_folder(job: FolderJob) -> Iterator[OpenFolder]:
    """Find the scans, make the folder of results, and clean up what a killed run left there.

    Raises:
        VolumeError: if there is no scan.
        OutputError: if the folder of results cannot be written to.
        SettingsError: if another process does the same part.
    """
    scans = find_scans(job)
    with open_manifest(job.output, job.part.manifest_name) as manifest:
        remove_temporaries(scans)
        yield OpenFolder(job, scans, manifest)


class FolderBatch(ABC):
    """One part of a folder on its way.

    Attributes:
        choice: What computes, in a line.
        scans: All scans of the part.
        left: Those to do: all but the ones whose input, model and settings are those of results that lie there.
        settings: What results depend on: model, engine, precision, quality and smallest lesion.
        manifest_path: Where they are recorded.
    """

    def __init__(self, folder: OpenFolder, settings: Mapping[str, Any], choice: str) -> None:
        """Find out what is left.

        Args:
            folder: As `open_folder` gave it.
            settings: What `describe_settings` gave.
            choice: What computes, in a line.
        """
        job, manifest = folder.job, folder.manifest
        self.choice = choice
        self.scans = folder.scans
        self.settings = settings
        self.manifest_path = manifest.path
        self.left = tuple(scan for scan in self.scans if job.overwrite or not self._is_done(scan, manifest))
        self._manifest = manifest

    @abstractmethod
    def segment(self, on_record: OnRecord, cancel: threading.Event | None = None) -> None:
        """Segment what is left, write the results and record them; a scan that fails does not stop the others.

        Args:
            on_record: Called when a scan is recorded, in any thread.
            cancel: Set it to drop the scans in work after their tile; what is found by then is still written.

        Raises:
            SegmentationCancelled: if `cancel` was set.
            OutputError: if results cannot be written for a reason that is not one scan's.
            VolumeError: if the folder of scans is gone.
        """

    def _take_scans(self, on_record: OnRecord) -> list[FolderScan]:
        """What is left; of two scans whose results would have one name the second is recorded as failed."""
        for scan in self.left:
            if scan.twin is not None:
                clash = f"{scan.name}: its results would have the names of those of {scan.twin}; rename one of the two"
                self._append(failed_record(scan, None, self.settings, SettingsError(clash)), on_record)
        return [scan for scan in self.left if scan.twin is None]

    def _append(self, record: ScanRecord, on_record: OnRecord) -> None:
        self._manifest.append(record)
        on_record(record)

    def _is_done(self, scan: FolderScan, manifest: Manifest) -> bool:
        return any(
            entry.settings == self.settings and _stands(scan, entry) and _is_input_of(scan, entry)
            for entry in manifest.done.get(scan.name, ())
        )


def _stands(scan: FolderScan, entry: DoneScan) -> bool:
    """Whether the results lie where they were written.

    The label map is not compared: a person may have corrected it, and that work is kept.
    """
    try:
        return scan.labels.is_file() and sha256_of(scan.report) == entry.report_sha256
    except OSError:
        return False


def _is_input_of(scan: FolderScan, entry: DoneScan) -> bool:
    """Whether the scan is the one that was segmented; its content decides where it was copied since."""
    state = ScanState.of(scan.source)
    if state is None or state.size_bytes != entry.size_bytes:
        return False
    try:
        return state.mtime_ns == entry.mtime_ns or sha256_of(scan.source) == entry.sha256
    except OSError:
        return False
