"""Is a loaded Segmenter steady: many scans in a row, the first answer, eight threads?

    python benchmarks/steady.py SCAN [--scans 200] [--model BUNDLE]

Memory is the process's own resident size after every segmentation of SCAN, growth the median of the last tenth less
that of the second tenth (the first warms caches up). The small scan is the middle of SCAN, 96 mm wide. The first result
of a warm Segmenter is the small scan after one that was not counted.
"""

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from record import keep_result

from covidseg_runtime import Segmenter, Volume, read_volume

SMALL_MM = 96.0
THREADS = 8


def small_piece(scan: Volume) -> Volume:
    """The middle of a scan, at most 96 mm along every axis, contiguous in memory."""
    starts, stops = [], []
    for length, spacing in zip(scan.shape, scan.spacing_mm, strict=True):
        count = min(length, round(SMALL_MM / spacing))
        starts.append((length - count) // 2)
        stops.append(starts[-1] + count)
    cut = tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ starts
    return Volume(np.ascontiguousarray(scan.voxels[cut]), affine)


def resident_mib() -> float:
    """Memory this process holds now, on Linux."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_over(segmenter: Segmenter, scan: Volume, count: int) -> list[float]:
    """Resident MiB after each of ``count`` segmentations."""
    memory = []
    for _ in range(count):
        segmenter.segment(scan)
        memory.append(resident_mib())
    return memory


def main() -> None:
    """Measure and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--model", help="another bundle than the default one")
    arguments = parser.parse_args()
    scan = read_volume(arguments.scan)
    small = small_piece(scan)
    with Segmenter.open(arguments.model, device="cpu") as segmenter:
        segmenter.segment(small)
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            alone = segmenter.segment(small).labels
            seconds.append(time.perf_counter() - began)
        with ThreadPoolExecutor(THREADS) as pool:
            labels = [one.labels for one in pool.map(segmenter.segment, [small] * THREADS * 2)]
        memory = memory_over(segmenter, scan, arguments.scans)
        engine = f"{segmenter.engine.name} {segmenter.engine.precision}"
        model = f"{segmenter.bundle.name} {segmenter.bundle.version}"
    tenth = max(1, len(memory) // 10)
    early, late = statistics.median(memory[tenth : 2 * tenth]), statistics.median(memory[-tenth:])
    keep_result(
        "steady",
        {
            "model": model,
            "engine": engine,
            "small_scan": list(small.shape),
            "warm_result_s": round(statistics.median(seconds), 3),
            "eight_threads_give_the_same_labels": all(bool((one == alone).all()) for one in labels),
            "scan": list(scan.shape),
            "scans": len(memory),
            "resident_mib": {"second_tenth": round(early, 1), "last_tenth": round(late, 1)},
            "growth_mib": round(late - early, 1),
        },
    )


if __name__ == "__main__":
    main()
