"""How many tiles hold no air, so that they need not be computed?

    python benchmarks/tile_skip.py DATA [--model BUNDLE]

Counted, no network runs: the tiles of the lung box on the model's grid, at the step of `balanced` and at 0.5 (`best`).
A tile without a voxel of air that the body encloses holds no aerated lung; bronchi and bowel gas count as air. The
share of such tiles is the most that skipping them could save, and dense infection may lie in them. DATA holds covid/
(COVID-19-CT-Seg, rebuilt) and ct/ (LIDC-IDRI).
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import keep_result

from covidseg_runtime import find_bundle, load_bundle, read_volume
from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.lung_box import enclosed_air, find_lung_box
from covidseg_runtime.resampling import GridPair, to_model_hu
from covidseg_runtime.segment_settings import QUALITIES
from covidseg_runtime.tiling import grid_tiles
from covidseg_runtime.volume import to_orientation

CASES = (
    *(f"covid/coronacases_{number}" for number in ("001", "002", "003", "004", "005", "007", "008", "010")),
    *(f"ct/LIDC-IDRI-{number}" for number in ("0001", "0002", "0003")),
)
STEPS = {quality: QUALITIES[quality].step for quality in ("balanced", "best")}


def count_case(data: Path, case: str, bundle: ModelBundle) -> dict[str, Any]:
    """Tiles of one scan, how many of them hold no enclosed air, and the least share of air of any, by quality."""
    spec, plan = bundle.preprocessing, bundle.tile_plan
    scan = to_orientation(read_volume(data / f"{case}_ct.nii.gz"), spec.orientation)
    box = find_lung_box(scan.voxels, scan.spacing_mm)
    grids = GridPair.for_spacing(box.shape, scan.spacing_mm, spec.spacing_mm)
    air = enclosed_air(to_model_hu(scan.voxels[box.slices], grids))
    row: dict[str, Any] = {"case": case, "box": box.rule, "shape": air.shape}
    for quality, step in STEPS.items():
        tiles = grid_tiles(grids.model_shape, replace(plan, step=step or plan.step))
        shares = [float(air[tile.slices].mean()) for tile in tiles]
        row[quality] = {"tiles": len(tiles), "without_air": shares.count(0), "least_air": round(min(shares), 5)}
    return row


def main() -> None:
    """Count every case and keep the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", help="another bundle than the default one")
    arguments = parser.parse_args()
    bundle = load_bundle(find_bundle(arguments.model))
    rows = [count_case(arguments.data, case, bundle) for case in CASES]
    sums = {}
    for quality, step in STEPS.items():
        tiles, without_air = (sum(row[quality][key] for row in rows) for key in ("tiles", "without_air"))
        share = round(without_air / tiles, 4)
        sums[quality] = {
            "step": step or bundle.tile_plan.step,
            "tiles": tiles,
            "without_air": without_air,
            "share": share,
            "least_air": min(row[quality]["least_air"] for row in rows),
        }
    model = {"name": bundle.name, "version": bundle.version, "tile_shape": bundle.tile_plan.tile_shape}
    keep_result("tile_skip", {"model": model, "sums": sums, "cases": rows})


if __name__ == "__main__":
    main()
