"""How long do the report on a folder and the pages of its scans take, and how large are they?

    python benchmarks/group_report.py RESULTS --scans SCANS [--rows 5000]

RESULTS is what `covidseg segment SCANS -o RESULTS` wrote. The large folder is simulated: its rows are those of RESULTS
over and over, volumes and shares scaled at random (seed 2020), label maps and every other page empty files. Each
command is a process of its own; Chromium, where it is installed, opens the large overview and sorts it.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import keep_result

SEED = 2020
SPREAD = 0.5  # SD of the logarithm of what volumes are scaled by
BROWSER = ("--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom")


def simulate(results: Path, folder: Path, rows: int) -> None:
    """Fill `folder` with so many simulated results."""
    lines = [json.loads(line) for line in (results / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    chance = random.Random(SEED)
    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for number in range(rows):
            line = copy.deepcopy(lines[number % len(lines)])
            stem = f"ward{number % 40:02}/patient_{number:05}_ct_covidseg"
            line["scan"] = f"{stem.removesuffix('_covidseg')}.nii.gz"
            (folder / stem).parent.mkdir(exist_ok=True)
            if line["status"] == "ok":
                report = json.loads((results / line["outputs"]["report"]["file"]).read_text(encoding="utf-8"))
                _scale(report["measures"], chance.lognormvariate(0, SPREAD))
                line["outputs"] = _write(folder, stem, report)
                if number % 2:
                    (folder / f"{stem}.html").touch()
            manifest.write(json.dumps(line) + "\n")


def _scale(measures: dict[str, Any], factor: float) -> None:
    """Scale what is infected, up to all of the lung."""
    share = measures["infection_percent"]["whole"]
    factor = factor if not share else min(factor, 100 / share)
    for name in ("infection_volume_ml", "infection_percent"):
        measures[name] = {
            side: None if value is None else round(value * factor, 3) for side, value in measures[name].items()
        }
    for name in ("ground_glass_ml", "consolidation_ml"):
        measures[name] = round(measures[name] * factor, 3)


def _write(folder: Path, stem: str, report: dict[str, Any]) -> dict[str, dict[str, str]]:
    outputs = {}
    for kind, ending, content in (("labels", ".nii.gz", b""), ("report", ".json", json.dumps(report).encode())):
        (folder / f"{stem}{ending}").write_bytes(content)
        outputs[kind] = {"file": f"{stem}{ending}", "sha256": hashlib.sha256(content).hexdigest()}
    return outputs


def run(*command: object) -> float:
    """Seconds of a command."""
    start = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return round(time.perf_counter() - start, 1)


def report(*arguments: object) -> float:
    """Seconds of `covidseg report`."""
    return run(sys.executable, "-m", "covidseg", "report", *arguments)


def time_pages(results: Path, scans: Path, output: Path) -> dict[str, float]:
    """Seconds and size of a page, with the start of the process in it."""
    seconds = report(results, "--scans", scans, "-o", output)
    sizes = [path.stat().st_size / 1e6 for path in output.rglob("*_covidseg.html")]
    return {
        "pages": len(sizes),
        "s_per_page": round(seconds / len(sizes), 2),
        "smallest_mb": round(min(sizes), 1),
        "largest_mb": round(max(sizes), 1),
    }


def main() -> None:
    """Simulate, measure and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=5000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large, pages = Path(folder) / "large", Path(folder) / "pages"
        large.mkdir()
        simulate(arguments.results, large, arguments.rows)
        seconds = [report(large, "--parquet") for _ in range(3)]
        files = {name: large / name for name in ("index.html", "scans.csv", "scans.parquet")}
        browser = shutil.which("chromium")
        view = f"{files['index.html'].as_uri()}#sort=infection_percent&order=descending"
        keep_result(
            "group_report",
            {
                "rows": arguments.rows,
                "report_s": seconds,
                "mb": {name: round(path.stat().st_size / 1e6, 2) for name, path in files.items()},
                "opened_and_sorted_s": None if browser is None else [run(browser, *BROWSER, view) for _ in range(3)],
                **time_pages(arguments.results, arguments.scans, pages),
            },
        )


if __name__ == "__main__":
    main()
