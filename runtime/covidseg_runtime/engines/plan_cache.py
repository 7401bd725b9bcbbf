"""TensorRT plans: where they lie, what each was built for, and when one may be opened.

A plan is executable code for one TensorRT on one GPU. It is built on the machine that runs it, kept in the user's own
cache, and never opened before three things held: nobody else can write it, it is the file that was built (its sha256
stands in a JSON file beside it), and it was built for this TensorRT, this GPU and this driver.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from covidseg_runtime.errors import EngineError, OutputError
from covidseg_runtime.volume_files import write_bytes_atomic

__all__ = [
    "FOLDER_VARIABLE",
    "HOW_TO_BUILD",
    "GpuIdentity",
    "PlanKey",
    "StoredPlan",
    "TensorRtIdentity",
    "find_plan",
    "is_built",
    "lock_plan",
    "make_plan_folder",
    "plan_folder",
    "plan_path",
    "read_plan",
    "read_private_file",
    "store_plan",
    "write_private_file",
]

FOLDER_VARIABLE = "COVIDSEG_PLAN_CACHE"
HOW_TO_BUILD = "covidseg export MODEL --trt"

_SCHEMA_VERSION = 1
_AMPERE = (8, 0)


@dataclass(frozen=True)
class TensorRtIdentity:
    """A TensorRT.

    Attributes:
        flavour: "tensorrt" or "tensorrt_rtx".
        version: Its version, such as "11.4.0.106".
    """

    flavour: str
    version: str

    def __str__(self) -> str:
        """As errors name it."""
        return f"{self.flavour} {self.version}"


@dataclass(frozen=True)
class GpuIdentity:
    """A GPU and its driver.

    Attributes:
        name: Such as "NVIDIA L4".
        compute_capability: Such as "8.9".
        driver: The CUDA version that the driver is for, such as "13.0".
    """

    name: str
    compute_capability: str
    driver: str

    def __str__(self) -> str:
        """As errors name it."""
        return f"{self.name} (compute capability {self.compute_capability})"


@dataclass(frozen=True)
class PlanKey:
    """Everything a plan depends on.

    Attributes:
        model_sha256: Of the ONNX file.
        tensorrt: The TensorRT that built it.
        gpu: The GPU it was built for.
        tile_shape: (z, y, x), fixed in the graph.
        batch: Tiles a call that the plan is tuned for, and the most it takes.
        flags: Every builder option by name.
    """

    model_sha256: str
    tensorrt: TensorRtIdentity
    gpu: GpuIdentity
    tile_shape: tuple[int, int, int]
    batch: tuple[int, int]
    flags: Mapping[str, str | int | None]

    @property
    def digest(self) -> str:
        """The key as 64 hexadecimal digits; another value of anything gives another."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StoredPlan:
    """A plan in the cache.

    Attributes:
        path: The plan; its description lies beside it as .json.
        sha256: What the plan's bytes have to give.
        precision: What its graph computes in: "f32", "f16" or "int8".
        key: What it was built for.
    """

    path: Path
    sha256: str
    precision: str
    key: PlanKey


def plan_folder() -> Path:
    """Where plans lie: $COVIDSEG_PLAN_CACHE, else covidseg/plans in $XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "covidseg" / "plans"


def make_plan_folder() -> Path:
    """The folder of plans, made with mode 0700 if it is not there.

    Raises:
        OutputError: if it cannot be made.
        EngineError: if other users may write to it.
    """
    folder = plan_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise OutputError(
            f"{folder} cannot be made ({exc.strerror}); name another folder in {FOLDER_VARIABLE}."
        ) from exc
    _refuse_foreign(folder, folder.stat())
    return folder


def plan_path(key: PlanKey) -> Path:
    """Where the plan of `key` lies, whether or not it was built."""
    return plan_folder() / f"{_stem(key)}.plan"


def store_plan(plan: bytes, key: PlanKey, precision: str) -> StoredPlan:
    """Keep a plan that was just built, and its description beside it, both with mode 0600.

    Raises:
        OutputError: if they cannot be written.
        EngineError: if other users may write to the folder.
    """
    make_plan_folder()
    stored = StoredPlan(plan_path(key), hashlib.sha256(plan).hexdigest(), precision, key)
    # The description comes last: a plan without one does not exist for anybody.
    write_private_file(stored.path, plan)
    write_private_file(stored.path.with_suffix(".json"), _to_json(stored))
    return stored


def is_built(key: PlanKey) -> bool:
    """Whether the plan of `key` lies in the cache, whole and unaltered."""
    for stored in _stored_plans(key.model_sha256):
        if stored.key == key:
            try:
                read_plan(stored)
            except EngineError:
                return False
            return True
    return False


def find_plan(model: str, model_sha256: str, tensorrt: TensorRtIdentity, gpu: GpuIdentity) -> StoredPlan:
    """The plan of an ONNX file that this TensorRT may open on this GPU; the last built one if there are several.

    Args:
        model: The file's name, for errors.
        model_sha256: Its sha256.
        tensorrt: What shall open the plan.
        gpu: What shall run it.

    Raises:
        EngineError: if none was built, or each for something else.
    """
    plans = _stored_plans(model_sha256)
    if not plans:
        raise EngineError(f"there is no TensorRT plan of {model} in {plan_folder()}; build one: {HOW_TO_BUILD}")
    misfits = [_misfit(plan.key, tensorrt, gpu) for plan in plans]
    for plan, misfit in zip(plans, misfits, strict=True):
        if misfit is None:
            return plan
    raise EngineError(f"the TensorRT plan of {model} {misfits[0]}; build it again: {HOW_TO_BUILD}")


def read_plan(stored: StoredPlan) -> bytes:
    """The bytes of a plan, after it was found to be private and unaltered.

    Raises:
        EngineError: if it is missing, altered, or another user may write it.
    """
    try:
        plan = read_private_file(stored.path)
    except OSError as exc:
        raise EngineError(
            f"the TensorRT plan {stored.path} cannot be read ({exc.strerror}); build it again: {HOW_TO_BUILD}"
        ) from exc
    if hashlib.sha256(plan).hexdigest() != stored.sha256:
        raise EngineError(
            f"{stored.path} is not the TensorRT plan that was built (its sha256 differs), so it is not opened; "
            f"build it again: {HOW_TO_BUILD}"
        )
    return plan


@contextmanager
def lock_plan(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a plan's lock file: of two processes that want to build, the second waits for the first.

    The file stays. The system frees the lock when its holder ends, however it ends.

    Args:
        path: The plan.
        on_wait: Called once if another process holds the lock.

    Raises:
        EngineError: if this system has no such locks (Windows).
    """
    try:
        import fcntl
    except ImportError as exc:
        raise EngineError("TensorRT plans are built on Linux only: this system has no flock") from exc
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_private_file(path: Path) -> bytes:
    """The content of a file of the cache.

    Raises:
        OSError: if it cannot be read.
        EngineError: if another user owns it or may write it.
    """
    with path.open("rb") as file:
        _refuse_foreign(path, os.fstat(file.fileno()))
        return file.read()


def write_private_file(path: Path, content: bytes) -> None:
    """Write a file of the cache whole or not at all, with mode 0600.

    Raises:
        OutputError: if it cannot be written.
    """
    write_bytes_atomic(path, content)
    path.chmod(0o600)


def _stored_plans(model_sha256: str) -> list[StoredPlan]:
    """The described plans of one ONNX file, the last built first; descriptions of another form are passed over."""
    found = []
    for path in plan_folder().glob("*.json"):
        try:
            stored = _from_json(path, json.loads(read_private_file(path)))
            built = path.stat().st_mtime_ns
        except (OSError, ValueError, KeyError, TypeError, EngineError):
            continue
        if stored.key.model_sha256 == model_sha256:
            found.append((built, stored))
    return [stored for _, stored in sorted(found, key=lambda entry: entry[0], reverse=True)]


def _refuse_foreign(path: Path, status: os.stat_result) -> None:
    """Refuse what another user could have put there: a plan is code."""
    owner = os.getuid() if hasattr(os, "getuid") else status.st_uid
    if status.st_uid != owner or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EngineError(
            f"{path} can be written by other users, and a TensorRT plan is code; make it yours alone (chmod go-w), "
            f"or name another folder in {FOLDER_VARIABLE}"
        )


def _misfit(key: PlanKey, tensorrt: TensorRtIdentity, gpu: GpuIdentity) -> str | None:
    """Why a plan may not be opened here, as the end of a sentence; None if it may."""
    if not _opens_with(key, tensorrt):
        return f"was built with {key.tensorrt}, and here is {tensorrt}"
    if not _runs_on(key, gpu):
        return f"was built for {key.gpu}, and here is {gpu}"
    if key.gpu.driver != gpu.driver:
        return f"was built under a driver for CUDA {key.gpu.driver}, and here is one for CUDA {gpu.driver}"
    return None


def _opens_with(key: PlanKey, tensorrt: TensorRtIdentity) -> bool:
    if key.flags.get("version_compatible") and key.tensorrt.flavour == tensorrt.flavour:
        return _numbers(key.tensorrt.version) <= _numbers(tensorrt.version)
    return key.tensorrt == tensorrt


def _runs_on(key: PlanKey, gpu: GpuIdentity) -> bool:
    built, here = key.gpu.compute_capability, gpu.compute_capability
    match key.flags.get("hardware_compatibility"):
        case "same_compute_capability":
            return built == here
        case "ampere_plus":
            return _numbers(here) >= _AMPERE
        case _:
            return (key.gpu.name, built) == (gpu.name, here)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _to_json(stored: StoredPlan) -> bytes:
    description = {
        "schema_version": _SCHEMA_VERSION,
        "plan_sha256": stored.sha256,
        "precision": stored.precision,
        "key": asdict(stored.key),
    }
    return (json.dumps(description, indent=2) + "\n").encode()


def _from_json(path: Path, description: Mapping[str, Any]) -> StoredPlan:
    if description["schema_version"] != _SCHEMA_VERSION:
        raise ValueError("another schema version")
    key = description["key"]
    z, y, x = key["tile_shape"]
    optimal, largest = key["batch"]
    built_for = PlanKey(
        model_sha256=str(key["model_sha256"]),
        tensorrt=TensorRtIdentity(**key["tensorrt"]),
        gpu=GpuIdentity(**key["gpu"]),
        tile_shape=(int(z), int(y), int(x)),
        batch=(int(optimal), int(largest)),
        flags=dict(key["flags"]),
    )
    if path.stem != _stem(built_for):
        raise ValueError("the description of another plan")
    return StoredPlan(
        path.with_suffix(".plan"), str(description["plan_sha256"]), str(description["precision"]), built_for
    )


def _stem(key: PlanKey) -> str:
    return key.digest[:32]
