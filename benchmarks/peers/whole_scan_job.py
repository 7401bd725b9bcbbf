"""A contestant's side of whole_scan.py: read the job, time the way from file to file, leave the outcome.

Needs the standard library only, so that every contestant's Python can import it.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Job:
    """What a contestant has to do.

    Attributes:
        scan: The CT, .nii.gz.
        labels: Where its label map has to be, .nii.gz.
        outcome: Where its figures have to be, JSON.
        model: Folder of the bundle, or of what was made from it for this contestant.
        threads: Number of threads and of cores.
        options: What sets it apart from contestants of its kind.
        started: When its process was started, in seconds since 1970.
    """

    scan: Path
    labels: Path
    outcome: Path
    model: Path
    threads: int
    options: Mapping[str, Any]
    started: float


@dataclass
class Clock:
    """Where the time went.

    Attributes:
        network_s: Seconds within the network.
        calls: How often it was called.
        first_call: When it was first entered.
        last_return: When it was last left.
        stages: Named step -> seconds.
    """

    network_s: float = 0.0
    calls: int = 0
    first_call: float = 0.0
    last_return: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

    def network(self, predict: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
        """The same function, timed as the network."""

        def timed(*arguments: Inputs.args, **named: Inputs.kwargs) -> Output:
            start = time.perf_counter()
            result = predict(*arguments, **named)
            self.last_return = time.perf_counter()
            self.first_call = self.first_call or start
            self.network_s += self.last_return - start
            self.calls += 1
            return result

        return timed

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a step."""
        start = time.perf_counter()
        yield
        self.stages[name] = time.perf_counter() - start


def read_job() -> Job:
    """The job that the command line names; the process keeps to as many cores as it may have threads."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    return Job(**{**job, **{name: Path(job[name]) for name in ("scan", "labels", "outcome", "model")}})


def leave_outcome(job: Job, clock: Clock, segment: Callable[[], Mapping[str, Any]]) -> None:
    """Run ``segment``, from the scan's file to the label map's, once, and write what it took.

    Args:
        job: The job.
        clock: Through which ``segment`` calls the network.
        segment: Does the work with a model that is loaded, and says what it used.
    """
    opened, cpu_start, start = time.time(), time.process_time(), time.perf_counter()
    description = segment()
    end, cpu_s = time.perf_counter(), time.process_time() - cpu_start
    outcome = {
        "seconds": end - start,
        "load_s": opened - job.started,
        "before_s": clock.first_call - start,
        "sliding_window_s": clock.last_return - clock.first_call,
        "network_s": clock.network_s,
        "after_s": end - clock.last_return,
        "calls": clock.calls,
        "cpu_s": cpu_s,
        "peak_mib": _peak_memory_mib(),
        "stages": clock.stages,
        "used": dict(description),
    }
    job.outcome.write_text(json.dumps(outcome), encoding="utf-8")


def _peak_memory_mib() -> float:
    # Not getrusage: on Linux a child starts with the peak of the process that started it.
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit("this system does not tell a process's peak memory")
    return int(found[1]) / 2**10
