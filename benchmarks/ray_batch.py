"""Does a folder on a Ray cluster of this machine end with the bytes of a plain run, though workers are killed?

    python benchmarks/ray_batch.py [--scans 32] [--kills 20] [--seed 1]

Pieces of the demo scan, each of one tile, are segmented with the default model, three times in turn: by `covidseg
segment DIR --threads 1`, by the same with all cores, and by `covidseg segment DIR --ray local` with as many workers of
one core as the machine has cores. Then rounds on Ray follow in which a worker is killed by `kill -9` at two random
moments after the first scan was given out, until all kills are spent. Label maps, reports and manifest must be those
of the plain run with one thread, but for times; no figure is kept otherwise. Seconds are medians: of the whole command,
until it began to work, and a scan.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import nibabel
from kill_resume import label_maps, without_times
from record import keep_result

DEMO = Path(__file__).parents[1] / "tests" / "data" / "demo" / "coronacases_002_ct.nii.gz"
PIECE = 60
CORES = len(os.sched_getaffinity(0))
ON_RAY = ("--ray", "local", "--ray-actors", str(CORES), "--cores-per-actor", "1")
KILLS_A_ROUND = 2
TURNS = 3
PLAIN = "plain_1_thread0"


@dataclass(frozen=True)
class Run:
    """What a command took, and what it said.

    Attributes:
        seconds: Of all of it.
        ready: Of these, until it began to work.
        deaths: Workers whose death it told of.
        kills: Workers that were killed.
    """

    seconds: float
    ready: float
    deaths: int
    kills: int


def put_scans(folder: Path, count: int) -> None:
    """Cut pieces of 60x60x60 voxels out of the demo scan, along one lung and back."""
    demo = nibabel.load(DEMO)
    last = demo.shape[2] - PIECE
    for number in range(count):
        z = number * 7 % last
        path = folder / ("ward" if number % 2 else "") / f"piece{number:03}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(demo.slicer[50 : 50 + PIECE, 90 : 90 + PIECE, z : z + PIECE], path)


def run(folder: Path, output: str, options: tuple[str, ...], kill_after: tuple[float, ...] = ()) -> Run:
    """Run the command to its end; kill a worker so many seconds after it began to work."""
    start, ready, deaths = time.perf_counter(), 0.0, 0
    killer = Killer(kill_after)
    process = subprocess.Popen(
        [sys.executable, "-m", "covidseg", "segment", str(folder / "scans"), "-o", str(folder / output), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr or ():
        deaths += line.startswith("a worker on ")
        if "done before" in line:
            ready = time.perf_counter() - start
            killer.begin(process.pid)
    if process.wait() != 0:
        raise SystemExit(f"exit code {process.returncode}")
    kills = killer.end()
    return Run(time.perf_counter() - start, ready, deaths, kills)


class Killer:
    """Kills one worker of a command at chosen moments, in a thread."""

    def __init__(self, moments_s: tuple[float, ...]) -> None:
        """Take the moments, in seconds after `begin`."""
        self._moments_s = sorted(moments_s)
        self._thread = threading.Thread(target=self._kill_all)
        self._of, self._kills = 0, 0

    def begin(self, of: int) -> None:
        """Count from now; `of` is the command's process."""
        self._of = of
        self._thread.start()

    def end(self) -> int:
        """How many were killed, when all moments have passed."""
        self._thread.join()
        return self._kills

    def _kill_all(self) -> None:
        begin = time.perf_counter()
        for moment_s in self._moments_s:
            time.sleep(max(0.0, begin + moment_s - time.perf_counter()))
            workers = [pid for pid in family(self._of) if command_line(pid).startswith(b"ray::RayWorker")]
            if workers:
                os.kill(workers[0], signal.SIGKILL)
                self._kills += 1


def family(of: int) -> list[int]:
    """A process and all that came from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # ended meanwhile
    found = [of]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def command_line(pid: int) -> bytes:
    """What a process was started with; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def require_same(folder: Path, output: str) -> None:
    """Refuse results that are not those of the plain run, or beside which something is left."""
    here, plain = folder / output, folder / PLAIN
    if label_maps(here) != label_maps(plain) or without_times(here) != without_times(plain):
        raise SystemExit(f"{output} differs from the plain run")
    if [path for path in here.rglob(".*") if path.is_file()]:
        raise SystemExit(f"{output} holds unfinished files")


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Run undisturbed, each way three times; the first plain run stays for comparison."""
    ways = {"plain_1_thread": ("--threads", "1"), "plain_all_cores": (), "ray": ON_RAY}
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for turn in range(TURNS):
        for name, options in ways.items():
            runs[name].append(run(folder, f"{name}{turn}", options))
    for turn in range(TURNS):
        require_same(folder, f"ray{turn}")
    return {name: _medians(found, folder) for name, found in runs.items()}


def kill_again_and_again(folder: Path, kills: int, moments: random.Random, longest: float) -> list[Run]:
    """Rounds with two kills each until so many workers were killed."""
    rounds: list[Run] = []
    while sum(one.kills for one in rounds) < kills:
        output = f"killed{len(rounds)}"
        times = tuple(moments.uniform(0, longest) for _ in range(KILLS_A_ROUND))
        rounds.append(run(folder, output, ON_RAY, times))
        require_same(folder, output)
    return rounds


def main() -> None:
    """Run plain, on Ray, and on Ray with workers that are killed; keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=32)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put_scans(folder / "scans", arguments.scans)
        seconds = measure(folder)
        longest = seconds["ray"]["all"] - seconds["ray"]["ready"]
        rounds = kill_again_and_again(folder, arguments.kills, random.Random(arguments.seed), longest)
        _, lines = without_times(folder / PLAIN)
        keep_result(
            "ray_batch",
            {
                "ray": version("ray"),
                "scans": arguments.scans,
                "seed": arguments.seed,
                "settings": lines[0]["settings"],
                "ray_workers": CORES,
                "load_average": [round(load, 1) for load in os.getloadavg()],
                "seconds": {**seconds, "ray_with_kills": _medians(rounds, folder)},
                "rounds": len(rounds),
                "kills": sum(one.kills for one in rounds),
                "deaths_told": sum(one.deaths for one in rounds),
                "rounds_that_differ_from_the_plain_run": 0,
            },
        )


def _medians(runs: list[Run], folder: Path) -> dict[str, float]:
    scans = len(label_maps(folder / PLAIN))
    return {
        "all": round(median(one.seconds for one in runs), 2),
        "ready": round(median(one.ready for one in runs), 2),
        "a_scan": round(median(one.seconds - one.ready for one in runs) / scans, 3),
    }


if __name__ == "__main__":
    main()
