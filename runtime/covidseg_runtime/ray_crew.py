"""The workers of one run on a Ray cluster: started, judged, given scans, and replaced when they die."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import covidseg_runtime
from covidseg_runtime.bundle import find_bundle, load_bundle
from covidseg_runtime.engines.engine import in_one_line
from covidseg_runtime.errors import CovidsegError, EngineError
from covidseg_runtime.folder_manifest import ScanRecord
from covidseg_runtime.folder_scans import FolderScan
from covidseg_runtime.ray_cluster import WorkerPlan, describe_room, reaching_cluster
from covidseg_runtime.ray_worker import RayWorker
from covidseg_runtime.scan_results import model_sha256
from covidseg_runtime.scan_worker import SharedFolders, WorkerFacts
from covidseg_runtime.wanted_segmenter import WantedSegmenter

# One is read or written while the network works on the other.
_SCANS_AT_ONCE = 2
_EARLY_DEATHS = 3
_DETAIL = re.compile(r"Worker exit detail: (.*?)(?: Some common causes|$)")


@dataclass(frozen=True, eq=False)
class Answer:
    """What a worker says of a scan.

    Attributes:
        scan: The scan.
        outcome: The line to record; or an error that ends the run, or tells that it was cancelled.
        machine: Where it was done.
    """

    scan: FolderScan
    outcome: ScanRecord | CovidsegError
    machine: str


@dataclass(frozen=True, eq=False)
class Loss:
    """A worker that died.

    Attributes:
        scans: What it had in work.
        machine: Where it was.
        reason: What Ray knows of its death, in a sentence.
    """

    scans: tuple[FolderScan, ...]
    machine: str
    reason: str


@dataclass(frozen=True, eq=False)
class Fault:
    """A fault of ours that one scan met; its worker works on.

    Attributes:
        scan: The scan.
        machine: Where it was.
        reason: What was raised, in a sentence.
    """

    scan: FolderScan
    machine: str
    reason: str


@dataclass(frozen=True)
class NoPlace:
    """Workers for which the cluster has had no room so far, while others work.

    Attributes:
        workers: How many.
    """

    workers: int


Event = Answer | Loss | Fault | NoPlace


@dataclass(eq=False)
class _Worker:
    """One actor, as the driver knows it."""

    actor: Any
    start: Any  # the reference whose result moves it to the next phase; None where it is ready
    phase: Literal["placing", "loading", "ready"] = "placing"
    machine: str = "a machine of the cluster"
    scans: dict[Any, FolderScan] = field(default_factory=dict)
    most: int = _SCANS_AT_ONCE
    since: float = field(default_factory=time.monotonic)

    @property
    def has_room(self) -> bool:
        return self.phase == "ready" and len(self.scans) < (self.most if self.scans else 1)


class Crew:
    """Workers on their way and at work; closing it ends them.

    Attributes:
        facts: What all workers compute with; None until the first has loaded the model.
    """

    def __init__(self, plan: WorkerPlan, wanted: WantedSegmenter, folders: SharedFolders, wait_s: float) -> None:
        """Start the workers.

        Args:
            plan: How many, and what each takes.
            wanted: What each loads.
            folders: What each has to see.
            wait_s: How long none of them may have a place.

        Raises:
            BundleError: if the bundle is missing or altered here.
        """
        import ray

        self.facts: WorkerFacts | None = None
        self._model_sha256 = model_sha256(load_bundle(find_bundle(wanted.model)))
        self._wanted, self._folders, self._wait_s = wanted, folders, wait_s
        self._actor: Any = ray.remote(RayWorker).options(
            num_cpus=plan.cores,
            num_gpus=plan.gpus,
            max_concurrency=_SCANS_AT_ONCE + 1,  # and to be told to stop
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        self._early_deaths = 0  # in a row
        self._had_place = time.monotonic()
        self._told_overdue = 0
        self._workers: list[_Worker] = []
        for _ in range(plan.workers):
            self._start()

    @property
    def in_work(self) -> tuple[FolderScan, ...]:
        """The scans that were given out."""
        return tuple(scan for worker in self._workers for scan in worker.scans.values())

    def has_room(self, waiting: int) -> bool:
        """Whether one of so many scans that wait can be given out now.

        A worker gets a second one only where enough are left for those that have none yet.
        """
        idle = sum(not worker.scans for worker in self._workers)
        return any(worker.has_room and (not worker.scans or waiting > idle) for worker in self._workers)

    def has_idle_worker(self) -> bool:
        """Whether a worker is ready that has nothing to do."""
        return any(worker.has_room and not worker.scans for worker in self._workers)

    def give(self, scan: FolderScan) -> None:
        """Give a scan to the worker that has least to do."""
        worker = min((one for one in self._workers if one.has_room), key=lambda one: len(one.scans))
        worker.most = worker.most if worker.scans else _SCANS_AT_ONCE
        self._send(worker, scan)

    def give_alone(self, scan: FolderScan) -> None:
        """Give a scan to an idle worker, which gets no other until it is done."""
        worker = next(one for one in self._workers if one.has_room and not one.scans)
        worker.most = 1
        self._send(worker, scan)

    def poll(self, timeout_s: float) -> Iterator[Event]:
        """What happened, after at most so many seconds.

        Raises:
            EngineError: if no worker has had a place for too long, workers die before they can work, or one is not
                like the others.
            BundleError: if a worker has not the model.
        """
        import ray

        references = {reference: worker for worker in self._workers for reference in _references(worker)}
        with reaching_cluster():
            ray.wait(list(references), timeout=timeout_s)
            done, _ = ray.wait(list(references), num_returns=len(references), timeout=0)
        for reference in done:
            if references[reference] in self._workers:  # not lost by what stood before
                yield from self._take(references[reference], reference)
        yield from self._judge_places()

    def cancel(self) -> None:
        """Let workers end after the tile they are at."""
        with reaching_cluster():
            for worker in self._workers:
                if worker.phase == "ready":
                    worker.actor.cancel.remote()

    def close(self) -> None:
        """End all workers at once."""
        import ray

        for worker in self._workers:
            with suppress(ConnectionError, ray.exceptions.RayError):  # a cluster that is gone has ended them
                ray.kill(worker.actor)
        self._workers.clear()

    def _start(self) -> None:
        with reaching_cluster():
            actor = self._actor.remote()
            self._workers.append(_Worker(actor, actor.arrive.remote()))

    def _send(self, worker: _Worker, scan: FolderScan) -> None:
        with reaching_cluster():
            worker.scans[worker.actor.segment.remote(scan)] = scan

    def _take(self, worker: _Worker, reference: Any) -> Iterator[Event]:  # noqa: ANN401 - Ray's own
        """Take one answer."""
        import ray

        scan = worker.scans.get(reference)
        try:
            with reaching_cluster():
                answer: Any = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            reason = in_one_line(str(error.cause))
            if scan is None:
                raise EngineError(f"the worker on {worker.machine} cannot begin: {reason}") from error
            worker.scans.pop(reference)
            yield Fault(scan, worker.machine, reason)
        except ray.exceptions.RayError as error:
            yield self._lose(worker, _cause(error))
        else:
            if scan is None:
                self._promote(worker, answer)
                return
            worker.scans.pop(reference)
            yield Answer(scan, answer, worker.machine)

    def _promote(self, worker: _Worker, answer: Any) -> None:  # noqa: ANN401 - of any phase
        """Let a worker pass to its next phase."""
        if isinstance(answer, CovidsegError):
            raise type(answer)(f"the worker on {worker.machine} cannot begin: {answer}") from answer
        if worker.phase == "placing":
            self._welcome(worker, answer)
            return
        self._judge(worker, answer)
        worker.phase, worker.start = "ready", None
        self._early_deaths = 0

    def _welcome(self, worker: _Worker, found: dict[str, str | None]) -> None:
        """Let a worker that has a place load the model, if it is of our version."""
        import ray

        worker.machine = str(found["machine"])
        ours = {"covidseg": covidseg_runtime.__version__, "ray": ray.__version__}
        other = {name: found[name] for name, value in ours.items() if found[name] != value}
        if other:
            theirs = ", ".join(f"{name} {value or 'not installed'}" for name, value in other.items())
            here = ", ".join(f"{name} {ours[name]}" for name in other)
            raise EngineError(
                f"the worker on {worker.machine} has {theirs}, this command {here}; install the same on all machines"
            )
        with reaching_cluster():
            worker.phase, worker.start = "loading", worker.actor.load.remote(self._wanted, self._folders)

    def _judge(self, worker: _Worker, facts: WorkerFacts) -> None:
        """Refuse a worker whose results would not be those of the others."""
        if facts.settings["model_sha256"] != self._model_sha256:
            raise EngineError(
                f"the worker on {worker.machine} has another model {facts.settings['model']} than this command: its "
                "bundle.json has another sha256; install the same on all machines"
            )
        self.facts = self.facts or facts
        require_alike(self.facts, facts, worker.machine)

    def _lose(self, worker: _Worker, reason: str) -> Loss:
        """Put a new worker in the place of one that died; not for ever, if they die before they can work."""
        import ray

        with reaching_cluster():
            ray.kill(worker.actor)  # it may live on where the cluster cannot reach it
        self._workers.remove(worker)
        loss = Loss(tuple(worker.scans.values()), worker.machine, reason)
        self._early_deaths += worker.phase != "ready"
        if worker.phase == "ready" or self._early_deaths < _EARLY_DEATHS:
            self._start()
        elif not self._workers:
            raise EngineError(f"workers die before they can begin, the last one on {loss.machine}: {reason}")
        return loss

    def _judge_places(self) -> Iterator[NoPlace]:
        now, placing = time.monotonic(), [worker for worker in self._workers if worker.phase == "placing"]
        if len(placing) < len(self._workers):
            self._had_place = now
            overdue = sum(now - worker.since > self._wait_s for worker in placing)
            if overdue > self._told_overdue:
                self._told_overdue = overdue
                yield NoPlace(overdue)
        elif now - self._had_place > self._wait_s:
            raise EngineError(
                f"no worker found a place in {self._wait_s:g} s: the Ray cluster has {describe_room()}; wait for other "
                "work on it to end, give fewer --cores-per-actor, or a longer --ray-wait"
            )


def require_alike(first: WorkerFacts, other: WorkerFacts, machine: str) -> None:
    """Refuse a worker whose results would not have the bits of the first one's.

    Raises:
        EngineError: naming what differs, and the machine.
    """
    ours, theirs = _flat(first), _flat(other)
    for name, value in ours.items():
        if theirs[name] != value:
            raise EngineError(
                f"workers are not alike: on {machine} {name} is {theirs[name]}, on another {value}; install the same "
                "on all machines, or give --engine and --precision that all of them have"
            )


def _references(worker: _Worker) -> tuple[Any, ...]:
    return (*worker.scans, *(() if worker.start is None else (worker.start,)))


def _flat(facts: WorkerFacts) -> dict[str, Any]:
    return {**facts.settings, "threads": facts.threads, **facts.packages}


def _cause(error: Exception) -> str:
    """What Ray knows of a death, without its advice."""
    message = " ".join(str(error).split())
    detail = _DETAIL.search(message)
    return in_one_line(detail[1] if detail else message)
