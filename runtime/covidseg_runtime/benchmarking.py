"""How fast, how large and how right every engine of this machine is, with one model and one scan.

A row is measured in a fresh process, so that its memory and its threads are its own: the process opens the engine
(load time, import included), runs a few tiles, then whole scans through the `Segmenter`; reading the file is not
counted. What cannot run keeps its row, with the reason.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import import_module
from multiprocessing.spawn import get_executable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.bundle import ModelBundle, load_bundle
from covidseg_runtime.engines import ENGINES, PRECISIONS, Engine, available_engines, engine_candidates, open_engine
from covidseg_runtime.errors import CovidsegError, EngineError, SettingsError
from covidseg_runtime.machine_facts import installed_size_mb
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.metrics import dice
from covidseg_runtime.process_memory import peak_memory_mib
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import read_volume

ENGINE_OPENER = "covidseg_runtime.benchmarking:open_engine_subject"

_WARM_UP_TILES, _TIMED_TILES = 2, 5
_JOB, _OUTCOME, _INFECTION = "job.json", "outcome.json", "infection.npy"
# -c, not -m: the module must not be there twice, once as __main__. -P keeps the working folder off the path.
_CHILD = "import sys; from covidseg_runtime.benchmarking import run_child; run_child(sys.argv[1])"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Contestant:
    """What a row is to measure.

    Attributes:
        engine: Such as "openvino".
        precision: What it computes in: "f32", "bf16", "f16" or "int8".
        device: "auto", "cpu", "cuda" or "cuda:n".
        opener: "module:function" that opens it, called with (bundle, contestant, threads); gives a `Subject`.
        packages: Python packages whose installed size counts; if empty, those that opening it imports.
    """

    engine: str
    precision: str
    device: str
    opener: str = ENGINE_OPENER
    packages: tuple[str, ...] = ()

    @property
    def is_engine(self) -> bool:
        """Whether it is one of the runtime's engines."""
        return self.opener == ENGINE_OPENER

    def __str__(self) -> str:
        """For people: "openvino f32 on cpu"."""
        return f"{self.engine} {self.precision} on {self.device}"


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


@dataclass(frozen=True)
class Selection:
    """Which rows are wanted; what is empty stands for all.

    Attributes:
        engines: Names of engines and peers.
        precisions: "f32", "bf16", "f16" or "int8".
        device: "auto", "cpu", "cuda" or "cuda:n".
    """

    engines: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    device: str = "auto"


@dataclass(frozen=True)
class Workload:
    """What every row has to do.

    Attributes:
        bundle: Folder of a model bundle.
        scan: A chest CT as NIfTI.
        repeats: How often the scan is segmented.
        threads: Number of CPU threads; None leaves the choice to the engine.
    """

    bundle: Path
    scan: Path
    repeats: int = 3
    threads: int | None = None


@dataclass(frozen=True)
class Measurement:
    """What one process measured.

    Attributes:
        device: What was run on.
        load_s: Importing and opening the engine.
        tile_ms: Each timed tile.
        scan_s: Each scan, from voxels in memory to labels on the scan's grid.
        peak_memory_mib: The most memory the process held, file and voxels included; None where the system does not
            tell. Memory of a GPU is not in it.
        packages: Python packages that belong to what was opened.
    """

    device: str
    load_s: float
    tile_ms: tuple[float, ...]
    scan_s: tuple[float, ...]
    peak_memory_mib: float | None
    packages: tuple[str, ...]

    @property
    def median_tile_ms(self) -> float:
        """Milliseconds a tile."""
        return statistics.median(self.tile_ms)

    @property
    def median_scan_s(self) -> float:
        """Seconds a scan."""
        return statistics.median(self.scan_s)

    @property
    def scans_per_hour(self) -> float:
        """Scans an hour, one after the other."""
        return 3600.0 / self.median_scan_s


@dataclass(frozen=True)
class Row:
    """One line of the benchmark: a measurement, or the reason why there is none.

    Attributes:
        contestant: What was to be measured, on the device that it ran on.
        problem: One sentence; None if it was measured.
        measurement: None if it could not run.
        dsc_reference: DSC of the infection against the reference; NaN if neither found any.
        dsc_truth: DSC of the infection against the truth; None without truth.
        installed_mb: Installed size in MB (10^6 bytes) of its packages and what they require, without numpy.
    """

    contestant: Contestant
    problem: str | None = None
    measurement: Measurement | None = None
    dsc_reference: float | None = None
    dsc_truth: float | None = None
    installed_mb: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """Every row, and what their DSC refers to.

    Attributes:
        rows: In the order they were measured.
        reference: The float32 engine that the others are compared with; None if none could run.
        date: UTC, ISO 8601.
    """

    rows: tuple[Row, ...]
    reference: Contestant | None
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def measured(self) -> tuple[tuple[Row, Measurement], ...]:
        """The rows that have numbers."""
        return tuple((row, row.measurement) for row in self.rows if row.measurement is not None)


def list_contestants(selection: Selection, peers: Sequence[Contestant] = ()) -> tuple[Contestant, ...]:
    """The rows of a benchmark, float32 on the CPU first: the first of these that runs is the reference.

    An engine has a row in every precision that it computes in, and in any that is asked for together with its name.
    If no engine is to compute in float32 on the CPU, one is added, as the reference.

    Args:
        selection: What is wanted.
        peers: Rows that are not engines of the runtime.

    Raises:
        SettingsError: if a name is unknown.
        EngineError: if the device is.
    """
    names = (*(name for name in ENGINES if name != "auto"), *dict.fromkeys(peer.engine for peer in peers))
    _refuse_unknown("engine", selection.engines, names)
    _refuse_unknown("precision", selection.precisions, PRECISIONS)
    engine_candidates("auto", selection.device)
    found: list[Contestant] = []
    for precision in selection.precisions or PRECISIONS:
        for name in selection.engines or names:
            wanted = Contestant(name, precision, selection.device)
            rivals = [peer for peer in peers if peer.engine == name]
            offered = _offered(wanted, rivals)
            if not offered and selection.engines and selection.precisions:  # asked for by both names: say why not
                offered = [replace(rivals[0], precision=precision) if rivals else wanted]
            found += offered
    if not any(_computes_reference(contestant) for contestant in found):
        found.append(_default_reference())
    found.sort(key=lambda contestant: (not _computes_reference(contestant), not contestant.is_engine))
    return tuple(dict.fromkeys(found))


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


def run_child(folder: str) -> None:
    """What the process of a row does: read the job in `folder`, measure, and leave the outcome there."""
    job = json.loads((Path(folder) / _JOB).read_text(encoding="utf-8"))
    workload = Workload(
        **{**job["workload"], "bundle": Path(job["workload"]["bundle"]), "scan": Path(job["workload"]["scan"])}
    )
    contestant = Contestant(**{**job["contestant"], "packages": tuple(job["contestant"]["packages"])})
    try:
        measurement, infection = _measure_here(workload, contestant)
    except CovidsegError as exc:
        outcome: dict[str, Any] = {"problem": str(exc)}
    else:
        np.save(Path(folder) / _INFECTION, infection)
        outcome = asdict(measurement)
    (Path(folder) / _OUTCOME).write_text(json.dumps(outcome), encoding="utf-8")


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


def _measure_apart(workload: Workload, contestant: Contestant) -> tuple[Measurement, Mask] | str:
    """Measurement and infection (X, Y, Z) of a row from a process of its own, or why there is none."""
    with TemporaryDirectory(prefix="covidseg-benchmark-") as folder:
        job = {
            "workload": {**asdict(workload), "bundle": str(workload.bundle), "scan": str(workload.scan)},
            "contestant": asdict(contestant),
        }
        (Path(folder) / _JOB).write_text(json.dumps(job), encoding="utf-8")
        done = subprocess.run(
            # An embedding host tells multiprocessing which Python to start; otherwise it is our own.
            [os.fsdecode(get_executable()), "-P", "-c", _CHILD, folder],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        outcome_file = Path(folder) / _OUTCOME
        if not outcome_file.exists():
            return _describe_end(done)
        outcome = json.loads(outcome_file.read_text(encoding="utf-8"))
        if "problem" in outcome:
            return str(outcome["problem"])
        lists = {name: tuple(outcome[name]) for name in ("tile_ms", "scan_s", "packages")}
        return Measurement(**{**outcome, **lists}), np.load(Path(folder) / _INFECTION)


def _describe_end(done: subprocess.CompletedProcess[bytes]) -> str:
    """One sentence on a process that left no outcome."""
    if done.returncode < 0:
        return f"its process was ended by {signal.Signals(-done.returncode).name}; was there too little memory?"
    lines = done.stderr.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"its process ended with exit code {done.returncode}: {last}"


def _offered(wanted: Contestant, rivals: Sequence[Contestant]) -> list[Contestant]:
    """The rows of one engine, or of the peer that has `rivals`, in one precision; none where it has no such."""
    if rivals:
        return [rival for rival in rivals if rival.precision == wanted.precision]
    try:
        choices = engine_candidates(wanted.engine, wanted.device, wanted.precision)
    except EngineError:
        return []
    return [replace(wanted, device=choice.device) for choice in choices]


def _computes_reference(contestant: Contestant) -> bool:
    return contestant.is_engine and (contestant.precision, contestant.device) == ("f32", "cpu")


def _default_reference() -> Contestant:
    installed = {info.name for info in available_engines() if info.problem is None}
    choices = engine_candidates("auto", "cpu")
    choice = next((choice for choice in choices if choice.name in installed), choices[0])
    return Contestant(choice.name, choice.precision, choice.device)


def _refuse_unknown(kind: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise SettingsError(f"{kind} {name!r} is unknown: expected one of {', '.join(known)}")


def _top_level_modules() -> set[str]:
    return {name.partition(".")[0] for name in sys.modules}
