"""What does every shortcut cost in DSC?

    python benchmarks/shortcuts.py DATA [--model BUNDLE]

Against `best` (step 0.5 and mirroring, f32, the box of the lungs, linear resampling): one thing changed at a time, on
real COVID-19 scans that the default model did not learn from. DATA holds covid/ (COVID-19-CT-Seg, rebuilt). Whole
runtime, the scan's own grid. Two rows take a shortcut back: the whole scan instead of the box of the lungs, and cubic
splines, as nnU-Net has them, instead of linear resampling to the model's grid. How many tiles a skip of empty ones
would save is counted by `tile_skip.py`.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from record import keep_result
from scipy import ndimage
from tile_merging import CASES

from covidseg_runtime import (
    Segmenter,
    SegmentSettings,
    find_bundle,
    load_bundle,
    open_engine,
    read_label_map,
    read_volume,
    segmenter,
)
from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.evaluation import align_truth
from covidseg_runtime.lung_box import Box
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.metrics import dice
from covidseg_runtime.resampling import GridPair
from covidseg_runtime.volume import Volume


@dataclass(frozen=True)
class Way:
    """A way to segment.

    Attributes:
        quality: As of the settings.
        precision: What the engine computes in.
        instead: What takes a step's place, by the step's name in the segmenter.
    """

    quality: str
    precision: str
    instead: tuple[tuple[str, Callable[..., Any]], ...] = ()

    @property
    def name(self) -> str:
        """As in the table."""
        return " ".join((self.quality, self.precision, *(step.__name__ for _, step in self.instead)))


def whole_scan(voxels: NDArray[Any], spacing_mm: tuple[float, float, float]) -> Box:
    """The box without a crop."""
    del spacing_mm
    z, y, x = voxels.shape
    return Box((0, 0, 0), (z, y, x), "whole")


def cubic_spline(voxels: NDArray[Any], grids: GridPair) -> NDArray[np.int16]:
    """To the model's grid by cubic splines."""
    zoom = [n_to / n_from for n_to, n_from in zip(grids.model_shape, grids.source_shape, strict=True)]
    resampled = ndimage.zoom(voxels.astype(np.float32), zoom, order=3, mode="nearest", grid_mode=True)
    clipped: NDArray[np.int16] = np.clip(np.rint(resampled), -1024, 3071).astype(np.int16)
    return clipped


WAYS = (
    Way("best", "f32"),
    Way("best", "f32", (("find_lung_box", whole_scan),)),
    Way("best", "f32", (("to_model_hu", cubic_spline),)),
    Way("best", "bf16"),
    Way("best", "int8"),
    Way("balanced", "f32"),
    Way("balanced", "bf16"),
    Way("balanced", "int8"),
    Way("fast", "f32"),
    Way("fast", "int8"),
)


def measure_way(bundle: ModelBundle, way: Way, scans: dict[str, tuple[Volume, Volume]]) -> list[float]:
    """DSC of each case."""
    found = []
    engine = open_engine(bundle, device="cpu", precision=way.precision)
    with ExitStack() as stack:
        for step, other in way.instead:
            stack.enter_context(patch.object(segmenter, step, other))
        opened = stack.enter_context(Segmenter(bundle, engine, SegmentSettings(quality=way.quality)))
        for scan, truth in scans.values():
            infected = align_truth(scan, truth, truth_kind="infection") == INFECTION
            found.append(round(float(dice(opened.segment(scan).labels == INFECTION, infected)), 4))
    return found


def main() -> None:
    """Measure every way and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", help="another bundle than the default one")
    arguments = parser.parse_args()
    bundle = load_bundle(find_bundle(arguments.model))
    folder = arguments.data / "covid"
    scans = {
        case: (read_volume(folder / f"{case}_ct.nii.gz"), read_label_map(folder / f"{case}_infection.nii.gz"))
        for case in CASES
    }
    table = {way: measure_way(bundle, way, scans) for way in WAYS}
    best = table[WAYS[0]]
    rows = [
        {
            "way": way.name,
            "dsc": dict(zip(CASES, dsc, strict=True)),
            "mean_change": round(sum(dsc) / len(dsc) - sum(best) / len(best), 4),
        }
        for way, dsc in table.items()
    ]
    model = {"name": bundle.name, "version": bundle.version, "files": {f.name: f.sha256 for f in bundle.files}}
    keep_result("shortcuts", {"model": model, "ways": rows})


if __name__ == "__main__":
    main()
