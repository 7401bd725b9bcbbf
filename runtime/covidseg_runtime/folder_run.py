"""A folder of scans: every one segmented, its results beside each other in another folder, and a manifest.

The model is loaded once; the next scan is read and the last one written while the network works. Killed at any
moment, a run leaves whole files under final names only, and the next run goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from covidseg_runtime.folder_batch import FolderBatch, OnRecord, OpenFolder, open_folder
from covidseg_runtime.folder_scans import FolderJob, FolderScan
from covidseg_runtime.many_scans import ManyResult, segment_many
from covidseg_runtime.report import describe_choice
from covidseg_runtime.scan_results import ResultWriter, ScanState
from covidseg_runtime.segmenter import Segmenter


@contextmanager
def open_folder_run(job: FolderJob, segmenter: Segmenter) -> Iterator[FolderRun]:
    """Open a folder to segment it in this process.

    Raises:
        VolumeError: if there is no scan.
        OutputError: if the folder of results cannot be written to.
        SettingsError: if another process does the same part.
    """
    with open_folder(job) as folder:
        yield FolderRun(folder, segmenter)


class FolderRun(FolderBatch):
    """One part of a folder, segmented by this process; get one by `open_folder_run`."""

    def __init__(self, folder: OpenFolder, segmenter: Segmenter) -> None:
        """Segment a folder that is open with a segmenter that is."""
        writer = ResultWriter(segmenter, folder.job.source)
        super().__init__(folder, writer.settings, describe_choice(segmenter))
        self._segmenter = segmenter
        self._writer = writer
        self._states: dict[str, ScanState | None] = {}

    def segment(self, on_record: OnRecord, cancel: threading.Event | None = None) -> None:
        """As of `FolderBatch`; `on_record` is called mostly in the thread that writes."""
        scans = self._take_scans(on_record)
        written: Future[None] | None = None
        results = segment_many(self._segmenter, self._note_states(scans), cancel=cancel)
        with ThreadPoolExecutor(1, "covidseg-writer") as writer, closing(results):
            for scan, result in zip(scans, results, strict=True):
                if written is not None:
                    written.result()  # one at a time: what waits to be written takes memory
                written = writer.submit(self._settle, scan, result, on_record)
                del result
            if written is not None:
                written.result()

    def _note_states(self, scans: Iterable[FolderScan]) -> Iterator[Path]:
        for scan in scans:
            self._states[scan.name] = ScanState.of(scan.source)
            yield scan.source

    def _settle(self, scan: FolderScan, result: ManyResult, on_record: OnRecord) -> None:
        """Write and record one result."""
        self._append(self._writer.settle(scan, self._states.pop(scan.name, None), result), on_record)
