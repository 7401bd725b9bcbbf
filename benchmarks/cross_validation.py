"""How good is a recipe on patients it did not learn from? The held-out cases of several folds in one table.

    python benchmarks/cross_validation.py BUNDLE BUNDLE ... [--external PREFIX] [--without CASE ...]
        [--data DATA [--overlays FOLDER]] [--keep-as NAME]

Every BUNDLE is a fold that `covidseg export` wrote; it measured its held-out cases by the whole runtime, on the scan's
own grid (`metrics.held_out` of bundle.json). A case held out by several folds counts once, by its mean. The means over
cases are given for those in training folds and, apart, for external ones: their names begin with --external, and no
fold learned from any. Where the other folds learn from external cases, one that does not is a table of its own:
--keep-as external_validation.

With --data, each inner case is segmented once more, by a fold that held it out, and its DSC is given with the decision
moved, which tells cases whose reference is drawn more generously or more strictly from those that were not understood.
With --overlays, the best, the median and the worst are drawn as JPEG.
"""

import argparse
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from record import keep_result

from covidseg import Segmenter, SegmentSettings, read_label_map, read_volume
from covidseg_runtime.metrics import dice
from covidseg_runtime.preview import render_preview

# Added to the logit of the calibrated probability.
OFFSETS = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
MEASURES = ("dsc", "nsd_3mm", "predicted_ml", "reference_ml")


def read_folds(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], set[str]]:
    """What was kept of each fold, and every case that some fold learned from."""
    folds, learned = [], set()
    for folder in folders:
        bundle = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        train, held_out = set(bundle["training"]["train"]), bundle["metrics"]["held_out"]
        leaked = sorted(train & {row["case"] for row in held_out})
        if leaked:
            raise SystemExit(f"{folder} learned from what it holds out: {', '.join(leaked)}")
        learned |= train
        folds.append({"bundle": f"{bundle['name']} {bundle['version']}", "commit": bundle["commit"], "rows": held_out})
    return folds, learned


def mean_of_cases(folds: Sequence[Mapping[str, Any]], left_out: Sequence[str]) -> list[dict[str, Any]]:
    """One row a case, in the order of their names."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for fold in folds:
        for row in fold["rows"]:
            if row["case"] not in left_out:
                rows.setdefault(row["case"], []).append(row)
    return [
        {"case": case, "folds": len(found), **{key: statistics.fmean(row[key] for row in found) for key in MEASURES}}
        for case, found in sorted(rows.items())
    ]


def summarise(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over cases, and the median of the absolute volume error as a share of the reference."""
    errors = [abs(one["predicted_ml"] / one["reference_ml"] - 1) for one in cases]
    return {
        "cases": len(cases),
        "mean_dsc": round(statistics.fmean(one["dsc"] for one in cases), 4),
        "mean_nsd_3mm": round(statistics.fmean(one["nsd_3mm"] for one in cases), 4),
        "median_volume_error": round(statistics.median(errors), 4),
    }


def move_decision(data: Path, bundles: Sequence[Path], cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """DSC of each case, and their mean, with each of OFFSETS added to the logit of infection, within the lungs."""
    rows: dict[str, list[float]] = {}
    for case in (str(row["case"]) for row in cases):
        bundle = next(one for one in bundles if holds_out(one, case))
        reference = read_label_map(data / f"{case}_infection.nii.gz").voxels > 0
        settings = SegmentSettings(keep_probability=True)
        with Segmenter.open(str(bundle), precision="f32", settings=settings) as segmenter:
            found = segmenter.segment(read_volume(data / f"{case}_ct.nii.gz"))
        if found.infection_probability is None:
            raise SystemExit(f"{bundle} gives no probability")
        lungs = found.labels > 0
        rows[case] = [
            round(dice((found.infection_probability > 255 / (1 + math.exp(offset))) & lungs, reference), 4)
            for offset in OFFSETS
        ]
    means = [round(statistics.fmean(values), 4) for values in zip(*rows.values(), strict=True)]
    return {"offsets": list(OFFSETS), "mean_dsc": means, "dsc": rows}


def draw_overlays(folder: Path, data: Path, bundles: Sequence[Path], cases: Sequence[Mapping[str, Any]]) -> None:
    """Write overlays of the best, the median and the worst case, each by a fold that held it out."""
    ranked = sorted(cases, key=lambda one: -float(one["dsc"]))
    picked = {"best": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}
    folder.mkdir(parents=True, exist_ok=True)
    for word, row in picked.items():
        bundle = next(one for one in bundles if holds_out(one, row["case"]))
        scan = read_volume(data / f"{row['case']}_ct.nii.gz")
        reference = read_label_map(data / f"{row['case']}_infection.nii.gz").voxels
        with Segmenter.open(str(bundle)) as segmenter:
            picture = render_preview(scan, segmenter.segment(scan).labels, reference)
        path = folder / f"cross_validation_{word}.jpg"
        Image.open(io.BytesIO(picture)).convert("RGB").save(path, quality=80)
        print(f"{path}: {row['case']}, DSC {row['dsc']:.3f}, by {bundle.name}")


def holds_out(bundle: Path, case: str) -> bool:
    """Whether a fold measured a case it had not learned from."""
    rows = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["metrics"]["held_out"]
    return any(row["case"] == case for row in rows)


def main() -> None:
    """Read, average and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--external", default="radiopaedia", help="how the names of external cases begin")
    parser.add_argument("--without", nargs="*", default=["radiopaedia_29_86490_1_128"], help="cases that do not count")
    parser.add_argument("--data", type=Path, help="folder of the cases, to move the decision")
    parser.add_argument("--overlays", type=Path, help="folder of the pictures")
    parser.add_argument("--keep-as", default="cross_validation", help="name of the result")
    arguments = parser.parse_args()
    if arguments.overlays is not None and arguments.data is None:
        parser.error("--overlays needs --data")
    folds, learned = read_folds(arguments.bundles)
    cases = mean_of_cases(folds, arguments.without)
    external = [one for one in cases if one["case"].startswith(arguments.external)]
    inner = [one for one in cases if one not in external]
    if any(one["case"] in learned for one in external):
        raise SystemExit("a fold learned from an external case")
    keep_result(
        arguments.keep_as,
        {
            "folds": [{key: fold[key] for key in ("bundle", "commit")} for fold in folds],
            "never_held_out": sorted(learned - {one["case"] for one in inner}),
            "inner": summarise(inner),
            "external": summarise(external) if external else None,
            "moved": move_decision(arguments.data, arguments.bundles, inner) if arguments.data is not None else None,
            "rows": [{key: round(v, 4) if isinstance(v, float) else v for key, v in one.items()} for one in cases],
        },
    )

    if arguments.overlays is not None:
        draw_overlays(arguments.overlays, arguments.data, arguments.bundles, inner)


if __name__ == "__main__":
    main()
