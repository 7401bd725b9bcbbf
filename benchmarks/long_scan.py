"""Does memory grow with the length of a scan?

    python benchmarks/long_scan.py SCAN

SCAN is segmented as it is, and four times over, every other copy upside down, by `covidseg segment` in processes of
their own.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from record import keep_result

TIMES = 4


def segment(scan: Path, folder: Path) -> dict[str, object]:
    """Peak memory of one run in MiB, as the command prints it, and what was chosen."""
    command = [sys.executable, "-m", "covidseg", "segment", str(scan), "-o", str(folder / "labels.nii.gz")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    (peak,) = re.findall(r"peak memory (\d+) MiB", said)
    return {"chosen": said.splitlines()[0], "peak_mib": int(peak)}


def main() -> None:
    """Segment both and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    arguments = parser.parse_args()
    image = nibabel.load(arguments.scan)
    voxels = np.asarray(image.dataobj)
    copies = [voxels if index % 2 == 0 else voxels[:, :, ::-1] for index in range(TIMES)]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # on the disk: long scans are spooled beside the result
        long = Path(folder) / "long.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.concatenate(copies, axis=2), image.affine), long)
        rows = {"once": segment(arguments.scan, Path(folder)), "four_times": segment(long, Path(folder))}
    keep_result("long_scan", {"scan": arguments.scan.name, "shape": list(voxels.shape), **rows})


if __name__ == "__main__":
    main()
