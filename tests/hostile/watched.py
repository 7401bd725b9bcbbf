"""Runs attempts in a child process, so that a crash, a hang or a memory excess is seen and has a name.

The child gets one line per attempt (a kind and a seed, or a kind and a path) and answers with one line of JSON. What
does not answer in time is killed; what dies is replaced for the attempts that follow.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from hostile.attempts import UndocumentedError, attempt_bundle, attempt_scan, attempt_scan_and_labels, attempt_series
from hostile.bundles import UNET_TILE, HostileBundle, bundle_around, hostile_bundle, sound_model
from hostile.scans import HostileScan, hostile_scan
from hostile.series import HostileSeries, hostile_series
from phantom import TILE_SHAPE

import covidseg_runtime

SECONDS = 2.0
EXCESS_MIB = 200.0
_PATIENCE_SECONDS = 20.0  # on a busy machine a sound attempt may wait for a core
_GRACE_SECONDS = 1.0  # a virtual machine may have been stopped for longer than any patience
_START_SECONDS = 120.0
_HEADROOM_BYTES = 2 << 30  # above what the warm child has: an excess is measured, a runaway is stopped
_TESTS = Path(__file__).parent.parent
_RUNTIME = Path(covidseg_runtime.__file__).parent.parent  # the child tries the one that its parent has


Hostile = HostileScan | HostileBundle | HostileSeries
_DRAW: dict[str, Callable[[Random], Hostile]] = {
    "scan": hostile_scan,
    "bundle": hostile_bundle,
    "series": hostile_series,
}


@dataclass(frozen=True)
class Attempt:
    """How one hostile input ended.

    Attributes:
        what: Kind and seed, such as "scan 17": it makes the same input again.
        changes: What was done to the input.
        end: "read", "opened", "loaded" or the name of the documented error; "undocumented", "crash" or "hang" are
            faults.
        detail: What was wrong, of a fault.
        seconds: Time of the attempt.
        cpu_seconds: Time of the child's processor in it.
        excess_mib: Largest resident memory during the attempt above that before it.
    """

    what: str
    changes: tuple[str, ...]
    end: str
    detail: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    excess_mib: float = 0.0

    @property
    def fault(self) -> str | None:
        """What is wrong with it; None if it ended as it should."""
        if self.end in ("undocumented", "crash", "hang"):
            return self.end
        if min(self.seconds, self.cpu_seconds) > SECONDS:
            return "slow"
        return "memory" if self.excess_mib > EXCESS_MIB else None


class WatchedChild:
    """A child process that makes attempts; use it in a `with` block."""

    def __init__(self) -> None:
        """Start the child and wait until it is warm."""
        self._start()

    def __enter__(self) -> WatchedChild:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The process that makes the next attempt."""
        return self._child.pid

    def attempt(self, what: str) -> Attempt:
        """Make one attempt; `what` is a kind (scan, bundle, series) and a seed, or "scan PATH" or "bundle PATH"."""
        self._send(f"{what}\n".encode())
        answer = self._answer(_PATIENCE_SECONDS)
        if answer is None:
            answer = self._answer(_GRACE_SECONDS)
        if answer:
            return Attempt(what, **json.loads(answer))
        if answer is None:
            end, detail = "hang", "no answer"
        else:
            end, detail = "crash", f"ended with {self._child.wait()}: {self._errors.read_text(errors='replace')[-300:]}"
        self._stop()
        self._start()
        return Attempt(what, _drawn(what).changes, end, detail)

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hostile-")
        self._errors = Path(self._folder.name) / "stderr"
        paths = os.pathsep.join((str(_TESTS), str(_RUNTIME), os.environ.get("PYTHONPATH", "")))
        with self._errors.open("wb") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "hostile.watched", self._folder.name],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            )
        if not self._answer(_START_SECONDS):
            raise RuntimeError(f"the child did not start: {self._errors.read_text(errors='replace')}")

    def _stop(self) -> None:
        self._child.kill()
        with self._child:  # closes the pipes and waits
            pass
        self._folder.cleanup()

    def _send(self, line: bytes) -> None:
        if self._child.stdin is not None:
            self._child.stdin.write(line)

    def _answer(self, seconds: float) -> bytes | None:
        """The next line of the child; nothing in it if the child died, None if it takes longer."""
        pipe = self._child.stdout
        if pipe is None or not select.select([pipe], [], [], seconds)[0]:
            return None
        return pipe.readline()


def _drawn(what: str) -> Hostile:
    """The input of an attempt by seed, or by the path of a kept file."""
    kind, _, name = what.partition(" ")
    if not name.isdecimal():
        return kept(kind, Path(name))
    return _DRAW[kind](Random(int(name)))


def kept(kind: str, path: Path) -> HostileScan | HostileBundle:
    """A file of the corpus: a scan, a model made from the tiny one, or a description of the exported one."""
    if kind == "scan":
        return HostileScan(("kept",), path.name, path.read_bytes())
    if path.suffix == ".onnx":
        return bundle_around(path.read_bytes(), [*TILE_SHAPE])
    return HostileBundle(("kept",), path.read_bytes(), sound_model())


def _serve(folder: Path) -> None:
    """Answer attempts line by line, until the parent ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what engines print is no answer
    _make(bundle_around(sound_model(), UNET_TILE), folder)
    limit = int(_status("VmSize") * 2**20) + _HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers.write("warm\n")
    for line in sys.stdin:
        answers.write(json.dumps(_make(_drawn(line.strip()), folder)) + "\n")


def _make(hostile: Hostile, folder: Path) -> dict[str, Any]:
    """One attempt, measured."""
    attempt = _attempt_of(hostile)
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        path = hostile.write(Path(empty))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        before, started, cpu = _status("VmRSS"), time.perf_counter(), time.process_time()
        try:
            end, detail = attempt(path), ""
        except UndocumentedError as fault:
            end, detail = "undocumented", str(fault)
        return {
            "changes": hostile.changes,
            "end": end,
            "detail": detail,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
            "excess_mib": _status("VmHWM") - before,
        }


def _attempt_of(hostile: Hostile) -> Callable[[Path], str]:
    if isinstance(hostile, HostileBundle):
        return attempt_bundle
    if isinstance(hostile, HostileSeries):
        return attempt_series
    # A large label map without a finding unfolds a thousandfold and is sound: a bomb is one only as a CT.
    return attempt_scan if hostile.is_bomb else attempt_scan_and_labels


def _status(key: str) -> float:
    """A size of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"this system does not tell {key}")


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
