"""The rows of a benchmark: what each is to measure, what it measured, and which there are on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from covidseg_runtime.engines import ENGINES, PRECISIONS, available_engines, engine_candidates
from covidseg_runtime.errors import EngineError, SettingsError

ENGINE_OPENER = "covidseg_runtime.benchmarking:open_engine_subject"


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
