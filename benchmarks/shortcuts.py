"""What does every shortcut cost in DSC?

    python benchmarks/shortcuts.py DATA [--model BUNDLE]

Against `best` (step 0.5 and mirroring, f32, the lung box): one thing changed at a time, on real COVID-19 scans that the
default model did not learn from. DATA holds covid/ (COVID-19-CT-Seg, rebuilt). Whole runtime, the scan's own grid.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from record import keep_result
from tile_merging import CASES

from covidseg_runtime import (
    Segmenter,
    SegmentSettings,
    find_bundle,
    load_bundle,
    open_engine,
    read_label_map,
    read_volume,
)
from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.evaluation import align_truth
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.metrics import dice
from covidseg_runtime.volume import Volume


@dataclass(frozen=True)
class Way:
    """A way to segment.

    Attributes:
        quality: As of the settings.
        precision: What the engine computes in.
    """

    quality: str
    precision: str


WAYS = (
    Way("best", "f32"),
    Way("best", "bf16"),
    Way("best", "int8"),
    Way("balanced", "f32"),
    Way("balanced", "bf16"),
    Way("balanced", "int8"),
    Way("fast", "int8"),
)


def measure_way(bundle: ModelBundle, way: Way, scans: dict[str, tuple[Volume, Volume]]) -> list[float]:
    """DSC of each case."""
    found = []
    engine = open_engine(bundle, device="cpu", precision=way.precision)
    with Segmenter(bundle, engine, SegmentSettings(quality=way.quality)) as segmenter:
        for scan, truth in scans.values():
            infected = align_truth(scan, truth, truth_kind="infection") == INFECTION
            found.append(round(float(dice(segmenter.segment(scan).labels == INFECTION, infected)), 4))
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
            "quality": way.quality,
            "precision": way.precision,
            "dsc": dict(zip(CASES, dsc, strict=True)),
            "mean_change": round(sum(dsc) / len(dsc) - sum(best) / len(best), 4),
        }
        for way, dsc in table.items()
    ]
    model = {"name": bundle.name, "version": bundle.version, "files": {f.name: f.sha256 for f in bundle.files}}
    keep_result("shortcuts", {"model": model, "ways": rows})


if __name__ == "__main__":
    main()
