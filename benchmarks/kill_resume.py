"""Killed by `kill -9` at 50 random moments, does a folder run end with the bytes of one that nothing disturbed?

    python benchmarks/kill_resume.py [--kills 50] [--seed 1]

Four pieces of the demo scan, each of one tile, are segmented with the default model by `covidseg segment DIR`. The
process is killed at any moment from its start to a third of its second scan; the same command goes on until all is
done, and begins anew in another folder until all kills are spent. After each kill every file under a final name must
be whole, and at the end of each round label maps, reports and manifest must be those of the undisturbed run, but for
times. No figure is kept otherwise. Kills within the writing of a file are rare here; the tests place them.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
from record import keep_result

DEMO = Path(__file__).parents[1] / "tests" / "data" / "demo" / "coronacases_002_ct.nii.gz"
SCANS = 4
PIECE = 60


def put_scans(folder: Path) -> None:
    """Cut pieces of 60x60x60 voxels out of the demo scan, along one lung."""
    demo = nibabel.load(DEMO)
    for number in range(SCANS):
        z = 20 + 20 * number
        path = folder / ("ward" if number % 2 else "") / f"piece{number}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(demo.slicer[50 : 50 + PIECE, 90 : 90 + PIECE, z : z + PIECE], path)


def command(folder: Path, output: Path) -> list[str]:
    """The command that is killed and started again."""
    return [sys.executable, "-m", "covidseg", "segment", str(folder / "scans"), "-o", str(output)]


def run_undisturbed(folder: Path) -> tuple[float, float]:
    """Run to the end.

    Returns:
        Seconds until it began to work, and seconds a scan.
    """
    start, ready = time.perf_counter(), 0.0
    process = subprocess.Popen(
        command(folder, folder / "undisturbed"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr or ():
        if "done before" in line:
            ready = time.perf_counter() - start
    if process.wait() != 0:
        raise SystemExit("the undisturbed run failed")
    return ready, (time.perf_counter() - start - ready) / SCANS


def run_until(command_line: list[str], seconds: float | None) -> int:
    """Run, and kill after so many seconds; the exit code, negative for a signal."""
    process = subprocess.Popen(command_line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def label_maps(output: Path) -> dict[str, bytes]:
    """Every label map under a final name."""
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*_covidseg.nii.gz")}


def without_times(output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reports, and lines of the manifest sorted by scan."""
    reports = {}
    for path in output.rglob("*_covidseg.json"):
        report = json.loads(path.read_bytes())
        del report["timings_s"]
        reports[path.relative_to(output).as_posix()] = report
    lines = [json.loads(line) for line in (output / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        del line["finished"], line["seconds"], line["outputs"]["report"]["sha256"]
    return reports, sorted(lines, key=lambda line: line["scan"])


def require_whole(output: Path, expected: dict[str, bytes]) -> Counter[str]:
    """Refuse a half file under a final name; what unfinished ones were found comes back."""
    for name, content in label_maps(output).items():
        if expected[name] != content:
            raise SystemExit(f"{name} has {len(content)} bytes and not those of the undisturbed run")
    for path in output.rglob("*_covidseg.json"):
        json.loads(path.read_bytes())
    manifest = output / "manifest.jsonl"
    lines = manifest.read_bytes() if manifest.exists() else b""
    return Counter(
        {
            "unfinished_files": sum(1 for path in output.rglob(".*_covidseg.*") if path.is_file()),
            "torn_lines": int(bool(lines) and not lines.endswith(b"\n")),
        }
    )


def require_same(output: Path, undisturbed: Path) -> None:
    """Refuse a round that ended with anything else than the undisturbed run."""
    if label_maps(output) != label_maps(undisturbed) or without_times(output) != without_times(undisturbed):
        raise SystemExit(f"{output} differs from {undisturbed}")


def kill_again_and_again(folder: Path, kills: int, moments: random.Random, longest: float) -> Counter[str]:
    """Rounds of kills until all are spent; what was counted comes back."""
    expected = label_maps(folder / "undisturbed")
    counted: Counter[str] = Counter()
    while True:
        output = folder / f"round{counted['rounds']}"
        output.mkdir(exist_ok=True)
        is_last = counted["kills"] >= kills
        code = run_until(command(folder, output), None if is_last else moments.uniform(0, longest))
        if code == -signal.SIGKILL:
            counted += require_whole(output, expected) + Counter(kills=1)
        elif code != 0:
            raise SystemExit(f"exit code {code}")
        else:
            require_same(output, folder / "undisturbed")
            counted["rounds"] += 1
            if is_last:
                return counted


def main() -> None:
    """Run undisturbed, then disturbed, and keep what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put_scans(folder / "scans")
        ready, scan_seconds = run_undisturbed(folder)
        longest = ready + 1.3 * scan_seconds
        counted = kill_again_and_again(folder, arguments.kills, random.Random(arguments.seed), longest)
        _, lines = without_times(folder / "undisturbed")
    keep_result(
        "kill_resume",
        {
            "scans": SCANS,
            "seed": arguments.seed,
            "settings": lines[0]["settings"],
            "seconds_to_begin": round(ready, 2),
            "seconds_a_scan": round(scan_seconds, 2),
            **{name: counted[name] for name in ("kills", "rounds", "unfinished_files", "torn_lines")},
            "half_files_under_final_names": 0,
            "rounds_that_differ_from_the_undisturbed_run": 0,
        },
    )


if __name__ == "__main__":
    main()
