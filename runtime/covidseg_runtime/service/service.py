"""A service without its HTTP: the jobs, the workers, the engine and the numbers, begun and ended together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import OutputError
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.service.job_folders import JobFolders
from covidseg_runtime.service.job_store import JobStore
from covidseg_runtime.service.metrics import Metrics
from covidseg_runtime.service.settings import ServiceSettings
from covidseg_runtime.service.worker import Workers


class Service:
    """Everything behind the routes.

    Args:
        settings: What it was told.
        segmenter: Its engine is the only one; it stays the caller's.
        report: Gets a line an event; none tells who a patient is.

    Attributes:
        settings: As given.
        segmenter: As given.
        folders: Where jobs lie.
        store: The jobs.
        metrics: The numbers.
    """

    def __init__(
        self, settings: ServiceSettings, segmenter: Segmenter, report: Callable[[str], None] = lambda line: None
    ) -> None:
        """Open the folder; nothing is begun.

        Raises:
            SettingsError: If the folder holds something else.
            OutputError: If it cannot be made.
        """
        self.settings, self.segmenter = settings, segmenter
        self.folders = JobFolders(settings.folder)
        self.store = JobStore(self.folders, settings.limits, settings.keep_s)
        self.metrics = Metrics()
        self.metrics.watch(self.store)
        self.workers = Workers(segmenter, self.store, self.folders, settings.limits.attempts, report, self.metrics)
        self.inferences = Inferences(segmenter, settings.limits.infers)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Work on jobs while the block runs; what is not ended then waits for the next start.

        Raises:
            SettingsError: If another process works in the folder.
            OutputError: If the folder is damaged.
        """
        with self.store.held():
            self.workers.start(self.settings.workers)
            try:
                yield
            finally:
                self.workers.stop()
                self.inferences.close()

    def why_not_ready(self) -> str | None:
        """Why no job would be taken now; None: it would."""
        if not self.workers.are_well:
            return "A worker has ended; start the service again."
        try:
            return None if self.store.has_room() else "The queue or the disk is full."
        except OutputError:
            return "The folder of the jobs cannot be used."


class Inferences:
    """Requests for the engine alone: few at a time, as each holds its tiles and logits in memory."""

    def __init__(self, segmenter: Segmenter, most: int) -> None:
        """Take so many at a time."""
        self._segmenter = segmenter
        self._places = threading.BoundedSemaphore(most)
        self._threads = ThreadPoolExecutor(most, "covidseg-infer")

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Where they run."""
        return self._threads

    def take_place(self) -> bool:
        """Take a place for a request, if there is one; to be given back."""
        return self._places.acquire(blocking=False)

    def give_back(self) -> None:
        """Give the place of a request back."""
        self._places.release()

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of tiles, in turn with the scans that are being segmented.

        Raises:
            EngineError: If the engine fails.
        """
        return self._segmenter.predict(tiles)

    def close(self) -> None:
        """Wait for those that run."""
        self._threads.shutdown()
