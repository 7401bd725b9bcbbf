"""What Ray starts on the machines of a cluster.

Ray sends the class itself there, not its name. Its body therefore needs nothing but the standard library: a machine
without covidseg, or with another one, can say so. Faults come back as values, so that Ray's own errors mean the end
of a worker.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from covidseg_runtime.errors import CovidsegError
    from covidseg_runtime.folder_manifest import ScanRecord
    from covidseg_runtime.folder_scans import FolderScan
    from covidseg_runtime.scan_worker import ScanWorker, SharedFolders, WorkerFacts
    from covidseg_runtime.wanted_segmenter import WantedSegmenter


class RayWorker:
    """A worker as Ray sees it: the actor."""

    def __init__(self) -> None:
        """Begin without a model: to be placed must not take the time of loading one."""
        self._worker: ScanWorker | None = None

    def arrive(self) -> dict[str, str | None]:
        """Where this is, and of what version: "machine", "pid", "covidseg", "ray" and "python"."""
        import ray

        found: str | None = None
        with suppress(ModuleNotFoundError):
            from covidseg_runtime import __version__ as found
        return {
            "machine": socket.gethostname(),
            "pid": str(os.getpid()),
            "covidseg": found,
            "ray": ray.__version__,
            "python": ".".join(map(str, sys.version_info[:3])),
        }

    def load(self, wanted: WantedSegmenter, folders: SharedFolders) -> WorkerFacts | CovidsegError:
        """Load the model; what is computed with comes back, or why it cannot be."""
        from covidseg_runtime.errors import CovidsegError
        from covidseg_runtime.scan_worker import ScanWorker

        try:
            self._worker = ScanWorker(wanted, folders)
        except CovidsegError as error:
            return error
        return self._worker.facts

    def segment(self, scan: FolderScan) -> ScanRecord | CovidsegError:
        """Segment one scan; an error is one that ends the run, or tells that it was cancelled."""
        from covidseg_runtime.errors import CovidsegError

        if self._worker is None:
            raise RuntimeError("this worker has not loaded a model")
        try:
            return self._worker.segment(scan)
        except CovidsegError as error:
            return error

    def cancel(self) -> None:
        """End what is in work after its tile."""
        if self._worker is not None:
            self._worker.cancel()
