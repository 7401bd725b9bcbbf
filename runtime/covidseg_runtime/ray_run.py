"""A folder of scans segmented by the workers of a Ray cluster.

Only the one who calls holds the manifest and appends to it, as in a run of one process: one goes on with the other's
work. Workers read scans and write results themselves, on a file system that all machines share. What a worker had in
work when it died is done again; nothing but whole files is left.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from covidseg_runtime.bundle import find_bundle
from covidseg_runtime.errors import CovidsegError, EngineError, OutputError, SegmentationCancelled
from covidseg_runtime.folder_batch import FolderBatch, OnRecord, OpenFolder, open_folder
from covidseg_runtime.folder_scans import FolderJob, FolderScan, remove_temporaries, remove_unfinished
from covidseg_runtime.ray_cluster import ClusterSettings, gpus_of_a_worker, machines_of_cluster, plan_workers
from covidseg_runtime.ray_crew import Answer, Crew, Event, Fault, Loss, NoPlace
from covidseg_runtime.scan_results import ScanState, failed_record
from covidseg_runtime.scan_worker import SharedFolders, WorkerFacts
from covidseg_runtime.wanted_segmenter import WantedSegmenter

_POLL_S = 0.2
# How often a scan may be in work when its worker dies.
_DEATHS_OF_A_SCAN = 3
# How long those who are told to stop may take: a tile, and the writing of what is found.
_STOP_S = 30.0

Say = Callable[[str], None]


@contextmanager
def open_ray_run(
    job: FolderJob, wanted: WantedSegmenter, settings: ClusterSettings, say: Say, cancel: threading.Event
) -> Iterator[RayRun]:
    """Open a folder to segment it on the cluster that was joined; workers are started, and ended in the end.

    Args:
        job: What is asked for; each worker has to see its folders under the same absolute paths.
        wanted: What each worker loads; its threads are the worker's cores.
        settings: How many workers there are, and how long to wait for the first.
        say: Called with a sentence about the workers.
        cancel: Set it, from any thread, to end the wait for the first worker.

    Raises:
        VolumeError: if there is no scan.
        OutputError: if the folder of results cannot be written to.
        SettingsError: if another process does the same part, or settings contradict each other.
        EngineError: if workers find no place, are not alike, or see other folders.
        BundleError: if the model is missing, here or there.
        SegmentationCancelled: if `cancel` was set.
    """
    job = replace(job, source=job.source.absolute(), output=job.output.absolute())
    with open_folder(job) as folder, _marked(folder) as mark:
        machines = machines_of_cluster()
        plan = plan_workers(machines, settings, gpus_of_a_worker(wanted, machines))
        plan = replace(plan, workers=min(plan.workers, len(folder.scans)))
        folders = SharedFolders(job.source, job.output, mark)
        with closing(Crew(plan, _for_worker(wanted, plan.cores), folders, settings.wait_s)) as crew:
            facts = _await_first(crew, cancel)
            each = f"{plan.cores} {'core' if plan.cores == 1 else 'cores'}{' and a GPU' if plan.gpus else ''}"
            many = "1 worker" if plan.workers == 1 else f"{plan.workers} workers"
            yield RayRun(folder, facts, crew, f"{many} of {each}", say)


class RayRun(FolderBatch):
    """One part of a folder, segmented by workers of a cluster; get one by `open_ray_run`."""

    def __init__(self, folder: OpenFolder, facts: WorkerFacts, crew: Crew, size: str, say: Say) -> None:
        """Segment a folder that is open with workers of which the first is ready.

        Args:
            folder: As `open_folder` gave it.
            facts: What all workers compute with.
            crew: The workers.
            size: How many there are to be, in words.
            say: Called with a sentence about the workers.
        """
        super().__init__(folder, facts.settings, f"{facts.choice}, {size}")
        self._crew = crew
        self._say = say
        self._waiting: deque[FolderScan] = deque()
        self._suspects: deque[FolderScan] = deque()  # one of them may have killed its worker: each is done alone
        self._deaths: Counter[str] = Counter()

    def segment(self, on_record: OnRecord, cancel: threading.Event | None = None) -> None:
        """As of `FolderBatch`; a scan that kills its worker three times has failed.

        Raises:
            EngineError: as of `open_ray_run`, of workers that come later.
        """
        self._waiting.extend(self._take_scans(on_record))
        while self._waiting or self._suspects or self._crew.in_work:
            if cancel is not None and cancel.is_set():
                self._wind_down(on_record)
                raise SegmentationCancelled("cancelled before all scans were segmented")
            self._give()
            for event in self._crew.poll(_POLL_S):
                self._take(event, on_record)

    def _give(self) -> None:
        while self._suspects and self._crew.has_idle_worker():
            self._crew.give_alone(self._suspects.popleft())
        while self._waiting and self._crew.has_room(len(self._waiting)):
            self._crew.give(self._waiting.popleft())

    def _take(self, event: Event, on_record: OnRecord) -> None:
        match event:
            case Answer():
                self._settle(event, on_record)
            case Loss():
                self._lose(event, on_record)
            case Fault():
                error = CovidsegError(f"{event.scan.name}: unexpected fault on {event.machine}: {event.reason}")
                self._fail(event.scan, error, on_record)
            case NoPlace():
                self._say(f"workers that still have no place in the Ray cluster: {event.workers}; the others go on")

    def _settle(self, answer: Answer, on_record: OnRecord) -> None:
        record = answer.outcome
        if isinstance(record, CovidsegError):
            raise type(record)(f"on {answer.machine}: {record}") from record
        if record.status == "failed" and not record.input and ScanState.of(answer.scan.source) is not None:
            raise EngineError(
                f"the worker on {answer.machine} does not see {answer.scan.source}, which is here; scans have to lie "
                "on a file system that all machines share"
            )
        self._append(record, on_record)

    def _lose(self, loss: Loss, on_record: OnRecord) -> None:
        """Have done again what a dead worker had in work; what it killed too often has failed."""
        remove_temporaries(loss.scans)
        names = ", ".join(scan.name for scan in loss.scans) or "no scan"
        self._say(f"a worker on {loss.machine} died with {names} in work: {loss.reason}")
        for scan in loss.scans:
            self._deaths[scan.name] += 1
            if self._deaths[scan.name] < _DEATHS_OF_A_SCAN:
                self._suspects.append(scan)
                continue
            error = CovidsegError(
                f"{scan.name}: {_DEATHS_OF_A_SCAN} workers died while they segmented it, the last one on "
                f"{loss.machine}: {loss.reason}"
            )
            self._fail(scan, error, on_record)

    def _fail(self, scan: FolderScan, error: CovidsegError, on_record: OnRecord) -> None:
        self._append(failed_record(scan, ScanState.of(scan.source), self.settings, error), on_record)

    def _wind_down(self, on_record: OnRecord) -> None:
        """Let workers end after their tile, and record what they have written by then."""
        self._crew.cancel()
        end = time.monotonic() + _STOP_S
        while self._crew.in_work and time.monotonic() < end:
            for event in self._crew.poll(_POLL_S):
                if isinstance(event, Answer) and not isinstance(event.outcome, SegmentationCancelled):
                    self._settle(event, on_record)


@contextmanager
def _marked(folder: OpenFolder) -> Iterator[Path]:
    """A file in the folder of results, by which workers know it; in the end it goes, and what dead ones left."""
    output, name = folder.job.output, folder.job.part.manifest_name
    remove_unfinished((output / name,))
    try:
        descriptor, path = tempfile.mkstemp(dir=output, prefix=f".{name}.")
    except OSError as error:
        raise OutputError(f"{output} cannot be written to: {error.strerror}; give another place.") from error
    os.close(descriptor)
    mark = Path(path)
    mark.chmod(0o644)  # a worker need not run as the same user
    try:
        yield mark
    finally:
        with suppress(OSError):  # the place may be gone; the next run cleans up
            mark.unlink()
            remove_temporaries(folder.scans)


def _for_worker(wanted: WantedSegmenter, cores: int) -> WantedSegmenter:
    """What a worker loads, with paths that mean the same in any working folder."""
    settings, model = wanted.settings, wanted.model
    if settings.spool is not None:
        settings = replace(settings, spool=replace(settings.spool, folder=settings.spool.folder.absolute()))
    if model is not None and find_bundle(model) == Path(model).expanduser():  # a folder, not a shipped name
        model = str(find_bundle(model).absolute())
    return replace(wanted, model=model, threads=cores, settings=settings)


def _await_first(crew: Crew, cancel: threading.Event) -> WorkerFacts:
    """Wait until a worker has loaded the model."""
    while crew.facts is None:
        if cancel.is_set():
            raise SegmentationCancelled("interrupted before a worker was ready; the same command begins again")
        for _ in crew.poll(_POLL_S):
            """A worker that died has another in its place, or poll raises."""
    return crew.facts
