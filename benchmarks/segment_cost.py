"""What do a minute and a gigabyte buy? Time and peak memory of `covidseg segment`, as a whole process.

    python benchmarks/segment_cost.py SCAN [--runs 3] [--engine openvino --engine onnxruntime]

Start it with the Python of the install that is to be measured. The result is compared with the scan before any figure
is kept: same shape, same affine, labels 0 to 3, and some lung.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import keep_result

from covidseg_runtime import read_label_map, read_volume

SMALLEST_LUNGS_ML = 1000


def run_once(scan: Path, labels: Path, engine: str) -> tuple[float, float]:
    """Segment in a process of its own.

    Returns:
        Seconds of the whole process, and its peak resident memory in MiB.
    """
    command = [sys.executable, "-m", "covidseg", "segment", str(scan), "-o", str(labels), "--engine", engine]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, usage.ru_maxrss / 1024


def check_result(scan: Path, labels: Path) -> tuple[int, ...]:
    """Refuse to time a wrong result; the shape of the scan comes back."""
    source, result = read_volume(scan), read_label_map(labels)
    lungs_ml = float((result.voxels > 0).sum()) * float(np.prod(result.spacing_mm)) / 1000
    if result.shape != source.shape or not np.array_equal(result.affine, source.affine) or lungs_ml < SMALLEST_LUNGS_ML:
        raise SystemExit(f"the label map of {scan.name} is wrong: {result.shape}, {lungs_ml:.0f} mL")
    return result.shape


def main() -> None:
    """Measure each engine, one after the other within each round, and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--engine", action="append", choices=("openvino", "onnxruntime"))
    arguments = parser.parse_args()
    engines = arguments.engine or ["openvino"]
    measured: dict[str, list[tuple[float, float]]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.nii.gz"
        for _ in range(arguments.runs):
            for engine in engines:
                measured[engine].append(run_once(arguments.scan, labels, engine))
                shape = check_result(arguments.scan, labels)
    first = statistics.median(seconds for seconds, _ in measured[engines[0]])
    rows = []
    for engine, runs in measured.items():
        seconds, mebibytes = (statistics.median(values) for values in zip(*runs, strict=True))
        rows.append(
            {
                "engine": engine,
                "seconds": round(seconds, 1),
                "all_seconds": [round(s, 1) for s, _ in runs],
                "ratio": round(seconds / first, 2),
                "peak_mib": round(mebibytes),
            }
        )
    keep_result("segment_cost", {"scan": arguments.scan.name, "shape": shape, "engines": rows})


if __name__ == "__main__":
    main()
