"""A Ray cluster: made for one run on this machine, or joined; and how many workers it bears.

A cluster of this machine listens on the loopback alone and asks for a token, made for the run. It leaves no process
and no file behind. Usage statistics are off.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import covidseg_runtime
from covidseg_runtime.engines import engine_candidates
from covidseg_runtime.engines.engine import in_one_line
from covidseg_runtime.errors import EngineError, SettingsError
from covidseg_runtime.wanted_segmenter import WantedSegmenter

LOCAL = "local"
# Several scans at once on a few cores each, rather than one after the other on all of them.
_CORES_OF_A_WORKER = 4
# Ray's least: nothing large goes through its store, as workers read and write files themselves.
_STORE_BYTES = 75 * 2**20
_PORT = re.compile(r"(?:ray://)?\[?(?P<host>[^/\[\]]+)\]?:(?P<port>\d{1,5})")
_KNOCK_S = 5.0
_QUIET: Mapping[str, str] = MappingProxyType(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Nothing of what Ray tells of dead workers, on standard output: it comes back as an error, too.
        "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    }
)


@dataclass(frozen=True)
class ClusterSettings:
    """What a caller may set.

    Attributes:
        address: "local", a cluster of this machine made for the run; "auto", the one that runs on this machine;
            "host:port" of another; or "ray://host:port", of which this machine is no part.
        workers: How many; None is as many as the cluster has room for.
        cores: Of each; None is 4, or all of the smallest machine that has less.
        wait_s: How long workers may wait for a place when none has one.
    """

    address: str = LOCAL
    workers: int | None = None
    cores: int | None = None
    wait_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse numbers that are none."""
        for name, value in (("workers", self.workers), ("cores", self.cores)):
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}: expected 1 or more")
        if not self.wait_s > 0:
            raise SettingsError(f"wait_s is {self.wait_s}: expected a number of seconds above 0")


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers there are to be, and what each takes.

    Attributes:
        workers: How many.
        cores: CPU cores, and threads, of each.
        gpus: GPUs of each: 0 or 1.
    """

    workers: int
    cores: int
    gpus: int


def require_ray() -> None:
    """Look whether Ray is installed, without importing it: it reads the environment then, see `join_cluster`.

    Raises:
        ModuleNotFoundError: if it is not.
    """
    if find_spec("ray") is None:
        raise ModuleNotFoundError("No module named 'ray'", name="ray")


def plan_workers(machines: Sequence[Mapping[str, float]], settings: ClusterSettings, gpus: int) -> WorkerPlan:
    """Share out a cluster: one worker for each GPU, or one for each group of cores.

    All workers have the same number of cores: with another number of threads, OpenVINO rounds differently.

    Args:
        machines: "CPU" and "GPU" of each machine, as Ray tells them.
        settings: What was asked for.
        gpus: Of each worker: 0 or 1.

    Raises:
        EngineError: if there is no room for a worker, or on this machine alone for as many as were asked for.
    """
    shares = [share for machine in machines if (share := _cores_for_one(machine, gpus))]
    cores = settings.cores or min((_CORES_OF_A_WORKER, *shares))
    room = sum(_room(machine, cores, gpus) for machine in machines)
    # A cluster that is not ours may grow: workers that were asked for by number wait for that.
    if (room == 0 and settings.workers is None) or (settings.address == LOCAL and room < (settings.workers or 1)):
        each = f"{cores} {'core' if cores == 1 else 'cores'}{' and a GPU' if gpus else ''}"
        raise EngineError(
            f"the Ray cluster has {_summary(machines)}: room for {room} workers of {each}; give other --ray-actors, "
            "--cores-per-actor or --device"
        )
    return WorkerPlan(settings.workers or room, cores, gpus)


def _cores_for_one(machine: Mapping[str, float], gpus: int) -> int:
    """The cores of a machine that one worker may take; 0 if none can be there."""
    cores = int(machine.get("CPU", 0))
    if not gpus or not cores:
        return cores
    count = int(machine.get("GPU", 0))
    return max(1, cores // count) if count else 0


def _room(machine: Mapping[str, float], cores: int, gpus: int) -> int:
    """How many workers a machine can hold."""
    by_cores = int(machine.get("CPU", 0)) // cores
    return min(by_cores, int(machine.get("GPU", 0))) if gpus else by_cores


def gpus_of_a_worker(wanted: WantedSegmenter, machines: Sequence[Mapping[str, float]]) -> int:
    """1 if the engine to be tried first computes on a GPU; "auto" does not where the cluster has none.

    Raises:
        SettingsError: if a certain GPU was asked for.
        EngineError: if no engine can do what was asked for.
    """
    if wanted.device.startswith("cuda:"):
        raise SettingsError(f"--device {wanted.device}: Ray gives each worker its GPU; use --device cuda")
    precision = "f32" if wanted.precision == "auto" else wanted.precision
    first, *_ = engine_candidates(wanted.engine, wanted.device, precision)
    has_gpu = any(machine.get("GPU", 0) >= 1 for machine in machines)
    return int(first.cuda_device is not None and (has_gpu or wanted.device != "auto"))


@contextmanager
def join_cluster(address: str) -> Iterator[None]:
    """Make or join a cluster, and leave it in the end; one made for this goes with all its processes.

    Raises:
        EngineError: if there is none at the address, or it is of another version.
        ModuleNotFoundError: if Ray is not installed.
    """
    with _own_cluster() if address == LOCAL else _joined(address):
        yield


@contextmanager
def reaching_cluster() -> Iterator[None]:
    """Tell of a cluster that went away; what concerns one worker passes.

    Raises:
        EngineError: if the cluster cannot be reached.
    """
    import ray

    try:
        yield
    except ray.exceptions.RayError:  # may be a ConnectionError as well: one that a worker met
        raise
    except ConnectionError as error:
        raise EngineError(f"the Ray cluster cannot be reached any more: {in_one_line(str(error))}") from error


def machines_of_cluster() -> tuple[Mapping[str, float], ...]:
    """What each machine of the cluster has, as Ray tells it: "CPU", "GPU" and more."""
    import ray

    return tuple(node["Resources"] for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]


def describe_room() -> str:
    """What the cluster has, and what of it is free, in words."""
    import ray

    free = ray.available_resources()  # type: ignore[no-untyped-call]
    return f"{_summary(machines_of_cluster())}, {free.get('CPU', 0):g} cores and {free.get('GPU', 0):g} GPUs are free"


def _summary(machines: Sequence[Mapping[str, float]]) -> str:
    cores = sum(machine.get("CPU", 0) for machine in machines)
    gpus = sum(machine.get("GPU", 0) for machine in machines)
    return f"{cores:g} cores and {gpus:g} GPUs on {len(machines)} machine{'s' if len(machines) != 1 else ''}"


@contextmanager
def _own_cluster() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="covidseg-ray-")
    try:
        with _environment(_of_own_cluster()):
            cores = len(os.sched_getaffinity(0))
            options = {"num_cpus": cores, "object_store_memory": _STORE_BYTES, "_temp_dir": folder}
            with _initialised(LOCAL, {**options, "include_dashboard": False}):
                yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _joined(address: str) -> Iterator[None]:
    _require_answer(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    with _environment(_QUIET), _initialised(address, {}):
        yield


def _require_answer(address: str) -> None:
    """Knock at the port: Ray itself would knock for minutes, and say so every few seconds."""
    found = _PORT.fullmatch(address)
    if found is None:
        if address != "auto":
            raise EngineError(f"{address!r} is no address of a Ray cluster: local, auto, host:port or ray://host:port")
        return
    try:
        socket.create_connection((found["host"], int(found["port"])), _KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or give --ray local"
        ) from error


@contextmanager
def _initialised(address: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Ray, quiet: neither its own log nor what workers print comes to this terminal."""
    import ray

    try:
        with _same_handlers():
            ray.init(address=address, configure_logging=False, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        ray.shutdown()  # of one of our own, what was started by then
        reason = in_one_line(str(error))
        raise EngineError(f"there is no Ray cluster to use at {address!r}: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _same_handlers() -> Iterator[None]:
    """Keep the handlers of signals: Ray puts its own, which ends the process, in the place of SIGTERM's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _of_own_cluster() -> dict[str, str]:
    code = str(Path(covidseg_runtime.__file__).parents[1])
    return {
        **_QUIET,
        # Ray's name for it; on every system, "0" makes it use the loopback alone.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        **_access(),
        # Ray's 15 would let all else on this machine go first.
        "RAY_worker_niceness": "0",
        # Workers run this covidseg, not another one that may be installed beside it.
        "PYTHONPATH": os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH")))),
    }


@cache
def _access() -> dict[str, str]:
    """What opens the clusters that this process makes; Ray would otherwise keep a token in the home folder.

    Ray reads the mode when it is imported. Where the caller did that before, its default holds: a token as well.
    """
    mode = {} if "ray" in sys.modules else {"RAY_AUTH_MODE": "token"}
    return {**mode, "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
