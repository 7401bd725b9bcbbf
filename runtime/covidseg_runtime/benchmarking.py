"""How fast, how large and how right every engine of this machine is, with one model and one scan.

A row is measured in a fresh process, so that its memory and its threads are its own: the process opens the engine
(load time, import included), runs a few tiles, then whole scans through the `Segmenter`; reading the file is not
counted. What cannot run keeps its row, with the reason.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from multiprocessing.spawn import get_executable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.benchmark_rows import Benchmark, Contestant, Measurement, Row, Workload
from covidseg_runtime.bundle import ModelBundle, load_bundle
from covidseg_runtime.engines import Engine, open_engine
from covidseg_runtime.errors import CovidsegError
from covidseg_runtime.machine_facts import installed_size_mb
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.metrics import dice
from covidseg_runtime.process_memory import peak_memory_mib
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import read_volume

_WARM_UP_TILES, _TIMED_TILES = 2, 5
_JOB, _OUTCOME, _INFECTION = "job.json", "outcome.json", "infection.npy"
# -c, not -m: the module must not be there twice, once as __main__. -P keeps the working folder off the path.
_CHILD = "import sys; from covidseg_runtime.benchmarking import run_child; run_child(sys.argv[1])"

Mask = NDArray[np.bool_]


class Subject(Protocol):
    """What a row measures, once it is open."""

    @property
    def device(self) -> str:
        """What it really runs on: "cpu" or "cuda:n"."""
        ...

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map tiles (N, 1, Z, Y, X) to logits (N, C, Z, Y, X)."""
        ...

    def segment(self, volume: Volume) -> NDArray[np.uint8]:
        """Label a CT: (X, Y, Z) uint8 on its own grid."""
        ...


def measure_contestants(
    workload: Workload,
    contestants: Sequence[Contestant],
    truth: Mask | None = None,
    on_start: Callable[[int, Contestant], None] | None = None,
) -> Benchmark:
    """Measure one after the other, each in a process of its own.

    Args:
        workload: What each has to do.
        contestants: As `list_contestants` orders them.
        truth: (X, Y, Z) bool, infection on the scan's grid; None if nobody marked it.
        on_start: Called before each with its number, from 0.
    """
    rows: list[Row] = []
    reference: tuple[Contestant, Mask] | None = None
    for number, contestant in enumerate(contestants):
        if on_start is not None:
            on_start(number, contestant)
        outcome = _measure_apart(workload, contestant)
        if isinstance(outcome, str):
            rows.append(Row(contestant, problem=outcome))
            continue
        measurement, infection = outcome
        ran = replace(contestant, device=measurement.device)
        if reference is None and contestant.is_engine and contestant.precision == "f32":
            reference = ran, infection
        rows.append(
            Row(
                contestant=ran,
                measurement=measurement,
                dsc_reference=None if reference is None else dice(infection, reference[1]),
                dsc_truth=None if truth is None else dice(infection, truth),
                installed_mb=installed_size_mb(measurement.packages),
            )
        )
    return Benchmark(tuple(rows), None if reference is None else reference[0])


def _measure_apart(workload: Workload, contestant: Contestant) -> tuple[Measurement, Mask] | str:
    """Measurement and infection (X, Y, Z) of a row from a process of its own, or why there is none."""
    with TemporaryDirectory(prefix="covidseg-benchmark-") as folder_name:
        folder = Path(folder_name)
        job = {
            "workload": {**asdict(workload), "bundle": str(workload.bundle), "scan": str(workload.scan)},
            "contestant": asdict(contestant),
        }
        (folder / _JOB).write_text(json.dumps(job), encoding="utf-8")
        done = subprocess.run(
            # An embedding host tells multiprocessing which Python to start; otherwise it is our own.
            [os.fsdecode(get_executable()), "-P", "-c", _CHILD, folder_name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        outcome_file = folder / _OUTCOME
        if not outcome_file.exists():
            return _describe_end(done)
        outcome = json.loads(outcome_file.read_text(encoding="utf-8"))
        if "problem" in outcome:
            return str(outcome["problem"])
        lists = {name: tuple(outcome[name]) for name in ("tile_ms", "scan_s", "packages")}
        return Measurement(**{**outcome, **lists}), np.load(folder / _INFECTION)


def _describe_end(done: subprocess.CompletedProcess[bytes]) -> str:
    """One sentence on a process that left no outcome."""
    if done.returncode < 0:
        return f"its process was ended by {signal.Signals(-done.returncode).name}; was there too little memory?"
    lines = done.stderr.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"its process ended with exit code {done.returncode}: {last}"


def run_child(folder_name: str) -> None:
    """What the process of a row does: read the job in the folder, measure, and leave the outcome there."""
    folder = Path(folder_name)
    job = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    workload = Workload(Path(job["workload"].pop("bundle")), Path(job["workload"].pop("scan")), **job["workload"])
    contestant = Contestant(packages=tuple(job["contestant"].pop("packages")), **job["contestant"])
    try:
        measurement, infection = _measure_here(workload, contestant)
    except CovidsegError as exc:
        outcome: dict[str, Any] = {"problem": str(exc)}
    else:
        np.save(folder / _INFECTION, infection)
        outcome = asdict(measurement)
    (folder / _OUTCOME).write_text(json.dumps(outcome), encoding="utf-8")


def _measure_here(workload: Workload, contestant: Contestant) -> tuple[Measurement, Mask]:
    bundle = load_bundle(workload.bundle)
    module, _, function = contestant.opener.partition(":")
    imported = _top_level_modules()
    start = time.perf_counter()
    subject: Subject = getattr(import_module(module), function)(bundle, contestant, workload.threads)
    load_s = time.perf_counter() - start
    packages = contestant.packages or tuple(sorted(_top_level_modules() - imported))
    tile = np.random.default_rng(0).standard_normal((1, 1, *bundle.tile_plan.tile_shape), np.float32)
    tile_s = [_timed(lambda: subject.predict(tile))[0] for _ in range(_WARM_UP_TILES + _TIMED_TILES)]
    volume = read_volume(workload.scan)
    scan_s: list[float] = []
    for _ in range(workload.repeats):
        seconds, labels = _timed(lambda: subject.segment(volume))
        scan_s.append(seconds)
    measurement = Measurement(
        device=subject.device,
        load_s=load_s,
        tile_ms=tuple(1000 * seconds for seconds in tile_s[_WARM_UP_TILES:]),
        scan_s=tuple(scan_s),
        peak_memory_mib=peak_memory_mib(),
        packages=packages,
    )
    return measurement, labels == INFECTION


def _timed(work: Callable[[], NDArray[Any]]) -> tuple[float, NDArray[Any]]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _top_level_modules() -> set[str]:
    return {name.partition(".")[0] for name in sys.modules}


class EngineSubject:
    """An engine of the runtime behind the `Segmenter`."""

    def __init__(self, bundle: ModelBundle, engine: Engine, device: str) -> None:
        """Take an open engine."""
        self.device = device
        self._segmenter = Segmenter(bundle, engine)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map tiles (N, 1, Z, Y, X) to logits (N, C, Z, Y, X)."""
        return self._segmenter.engine.predict(tiles)

    def segment(self, volume: Volume) -> NDArray[np.uint8]:
        """Label a CT: (X, Y, Z) uint8 on its own grid."""
        return self._segmenter.segment(volume).labels


def open_engine_subject(bundle: ModelBundle, contestant: Contestant, threads: int | None) -> Subject:
    """Open an engine exactly as the row says.

    Raises:
        CovidsegError: if it cannot run here, or if the bundle has no file for it.
    """
    engine = open_engine(
        bundle,
        engine=contestant.engine,
        device=contestant.device,
        precision=contestant.precision,
        threads=threads,
    )
    return EngineSubject(bundle, engine, contestant.device)
