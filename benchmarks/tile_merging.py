"""How should overlapping tiles be merged?

    python benchmarks/tile_merging.py DATA [--model BUNDLE] [--cases NAME ...] [--result NAME]

Instance normalisation makes a tile's answer depend on what the tile holds, so the width of the importance map and what
is averaged change the result; with batch normalisation other tiles can be tried as well, and those fitted to the lungs.
The network runs once a case, tile and step; its tiles are then merged in every way. DATA holds covid/ (COVID-19-CT-Seg,
rebuilt). Whole runtime, the scan's own grid, DSC of the infection.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import keep_result

from covidseg_runtime import Segmenter, find_bundle, load_bundle, open_engine, read_label_map, read_volume
from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.evaluation import align_truth
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.metrics import dice
from covidseg_runtime.tiling import AVERAGES, TilePlan

CASES = (
    "coronacases_002",
    "coronacases_007",
    "radiopaedia_4_85506_1_128",
    "radiopaedia_7_85703_0_128",
    "radiopaedia_10_85902_1_128",
    "radiopaedia_29_86491_1_128",
)
STEPS = (0.5, 0.75)
SIGMAS = (0.125, 0.1875, 0.25, 0.375, 10.0)
# Beside the bundle's own tile and the fitted one, for a network that takes any.
OTHER_TILES = ((64, 64, 64), (80, 80, 80))


def tile_plans(plan: TilePlan) -> dict[str, TilePlan]:
    """The tiles to try, by name."""
    own = replace(plan, fit=None)
    if plan.fit is None:
        return {_name(own): own}
    others = [replace(own, tile_shape=shape) for shape in (*OTHER_TILES, plan.tile_shape)]
    return {**{_name(one): one for one in others}, "fitted": plan}


def _name(plan: TilePlan) -> str:
    return "x".join(map(str, plan.tile_shape))


class Recorder:
    """An engine whose answers are kept, and can be given again."""

    def __init__(self, engine: Engine) -> None:
        """Keep the engine."""
        self.name, self.precision, self.batch = engine.name, engine.precision, engine.batch
        self.any_tile = engine.any_tile
        self._engine = engine
        self._kept: list[NDArray[np.float32]] = []
        self._again: Iterator[NDArray[np.float32]] | None = None

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """The engine's answer the first time, afterwards what it said."""
        if self._again is not None:
            return next(self._again)
        self._kept.append(self._engine.predict(tiles))
        return self._kept[-1]

    def rewind(self) -> None:
        """Give the same answers again."""
        self._again = iter(self._kept)

    def close(self) -> None:
        """Nothing is held."""


def measure_case(bundle: ModelBundle, engine: Engine, data: Path, case: str) -> list[dict[str, Any]]:
    """DSC of every way to merge on one case."""
    scan = read_volume(data / "covid" / f"{case}_ct.nii.gz")
    truth = read_label_map(data / "covid" / f"{case}_infection.nii.gz")
    infected = align_truth(scan, truth, truth_kind="infection") == INFECTION
    rows = []
    for (tile, own), step in product(tile_plans(bundle.tile_plan).items(), STEPS):
        recorder = Recorder(engine)
        for average in AVERAGES:
            for sigma in SIGMAS:
                plan = replace(own, step=step, importance_sigma=sigma, average=average)
                found = Segmenter(replace(bundle, tile_plan=plan), recorder).segment(scan).labels == INFECTION
                recorder.rewind()
                dsc = round(float(dice(found, infected)), 4)
                rows.append({"case": case, "tile": tile, "step": step, "average": average, "sigma": sigma, "dsc": dsc})
    return rows


def main() -> None:
    """Measure every case and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", help="another bundle than the default one")
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--result", default="tile_merging", help="name of the file in results/")
    arguments = parser.parse_args()
    bundle = load_bundle(find_bundle(arguments.model))
    engine = open_engine(bundle, precision=arguments.precision)
    rows = [row for case in arguments.cases for row in measure_case(bundle, engine, arguments.data, case)]
    ways: dict[tuple[str, float, str, float], list[float]] = {}
    for row in rows:
        ways.setdefault((row["tile"], row["step"], row["average"], row["sigma"]), []).append(row["dsc"])
    means = [
        {"tile": tile, "step": step, "average": average, "sigma": sigma, "mean_dsc": round(sum(dsc) / len(dsc), 4)}
        for (tile, step, average, sigma), dsc in ways.items()
    ]
    means.sort(key=lambda row: -row["mean_dsc"])
    model = {"name": bundle.name, "version": bundle.version, "files": {f.name: f.sha256 for f in bundle.files}}
    keep_result(
        arguments.result,
        {"model": model, "engine": [engine.name, engine.precision], "means": means, "cases": rows},
    )


if __name__ == "__main__":
    main()
