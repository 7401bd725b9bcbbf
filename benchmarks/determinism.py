"""Does `covidseg segment --deterministic` write the same label map whatever the number of threads, every time?

    python benchmarks/determinism.py SCAN [--runs 5]

Every run is a process of its own; what is compared is the sha256 of the whole file, compressed as it is.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from record import keep_result

THREADS = (1, 2, 8)


def digest_of_run(scan: Path, threads: int, folder: Path) -> str:
    """Sha256 of the label map of one run."""
    labels = folder / "labels.nii.gz"
    command = [sys.executable, "-m", "covidseg", "segment", str(scan), "-o", str(labels)]
    subprocess.run([*command, "--deterministic", "--threads", str(threads)], check=True, capture_output=True)
    return hashlib.sha256(labels.read_bytes()).hexdigest()


def main() -> None:
    """Run, compare and keep the digests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        digests = {
            threads: [digest_of_run(arguments.scan, threads, Path(folder)) for _ in range(arguments.runs)]
            for threads in THREADS
        }
    different = sorted({digest for found in digests.values() for digest in found})
    keep_result(
        "determinism",
        {"scan": arguments.scan.name, "threads": list(THREADS), "runs_each": arguments.runs, "sha256": different},
    )
    if len(different) > 1:
        raise SystemExit(f"{len(different)} different label maps")


if __name__ == "__main__":
    main()
