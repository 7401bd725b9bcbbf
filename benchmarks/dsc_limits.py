"""What bounds the DSC on DATA/covid: the model's grid, and how alike the references are drawn.

    python benchmarks/dsc_limits.py DATA/covid [--model BUNDLE]

The references have edges of 128×128 in the plane, repeated voxel by voxel; the network answers on its own grid. Round
trip: the reference taken to that grid and back, as a network without any error would give it. Learned from: the DSC
which the bundle reaches on the cases of its own training, by the whole runtime. What is missing there is no want of
generalisation: readers drew alike looking lung differently from case to case, or the training was too short to learn
how. The base install suffices. Research use only.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import keep_result

from covidseg import Segmenter, Volume, find_bundle, read_label_map, read_volume
from covidseg_runtime.metrics import measure_case
from covidseg_runtime.resampling import GridPair, to_model_grid, to_source_labels
from covidseg_runtime.sliding_window import LogitSlab
from covidseg_runtime.volume import MODEL_ORIENTATION, to_orientation

FINER_MM = 1.5
TOLERANCE_MM = 3.0


def round_trip(reference: Volume, spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """The mask (Z, Y, X) of a reference in the model's orientation, after its way to a grid and back."""
    grids = GridPair.for_spacing(reference.shape, reference.spacing_mm, spacing_mm)
    marked = to_model_grid(reference.voxels, grids) >= 0.5
    logits = np.stack([~marked, marked]).astype(np.float32)
    slices = (classes > 0 for _, classes in to_source_labels([LogitSlab(0, logits)], grids))
    return np.stack(list(slices))


def main() -> None:
    """Measure every Coronacases patient and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the cases")
    parser.add_argument("--model", default="default")
    arguments = parser.parse_args()
    description = json.loads((find_bundle(arguments.model) / "bundle.json").read_text(encoding="utf-8"))
    learned = set(description["training"]["train"])
    rows: list[dict[str, Any]] = []
    with Segmenter.open(arguments.model) as segmenter:
        spacings = {"": segmenter.bundle.preprocessing.spacing_mm, "_finer": (FINER_MM,) * 3}
        for path in sorted(arguments.data.glob("coronacases_*_infection.nii.gz")):
            case = path.name.removesuffix("_infection.nii.gz")
            reference = read_label_map(path)
            turned = to_orientation(reference, MODEL_ORIENTATION)
            mask = turned.voxels > 0
            row: dict[str, Any] = {"case": case, "learned_from": case in learned}
            for suffix, spacing_mm in spacings.items():
                measured = measure_case(round_trip(turned, spacing_mm), mask, turned.spacing_mm, TOLERANCE_MM)
                row |= {f"round_trip_dsc{suffix}": measured.dsc, f"round_trip_nsd{suffix}": measured.nsd}
            found = segmenter.segment(read_volume(arguments.data / f"{case}_ct.nii.gz")).labels == 3
            measured = measure_case(found, reference.voxels > 0, reference.spacing_mm, TOLERANCE_MM)
            rows.append({**row, "dsc": measured.dsc, "nsd": measured.nsd})
        settings = {"engine": segmenter.engine.name, "precision": segmenter.engine.precision}
    numbers = [key for key, value in rows[0].items() if isinstance(value, float)]
    fitted = [row for row in rows if row["learned_from"]]
    keep_result(
        "dsc_limits",
        {
            "bundle": f"{description['name']} {description['version']}",
            **settings,
            "finer_mm": FINER_MM,
            "mean_round_trip": {
                key: round(statistics.fmean(row[key] for row in rows), 4) for key in numbers if "round" in key
            },
            "mean_learned_from": {
                key: round(statistics.fmean(row[key] for row in fitted), 4) for key in ("dsc", "nsd")
            },
            "rows": [{key: round(v, 4) if key in numbers else v for key, v in row.items()} for row in rows],
        },
    )


if __name__ == "__main__":
    main()
