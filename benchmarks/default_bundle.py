"""What does the shipped model reach on patients it never saw?

    python benchmarks/default_bundle.py DATA [--pictures DIR]

DATA holds covid/ (COVID-19-CT-Seg, rebuilt), ct/, lungs/ and lesions/. Infection is measured on the held-out
Coronacases; lungs (labels 1 to 3 together) on LUNG1-001 and LUNG1-002 against lungs united with the tumour, because the
contours leave the tumour out. Whole runtime, the scan's own grid.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from record import keep_result

from covidseg_runtime import Segmenter, compare_label_maps, read_label_map, read_volume
from covidseg_runtime.evaluation import align_truth
from covidseg_runtime.metrics import dice
from covidseg_runtime.preview import render_preview
from covidseg_runtime.volume import Volume

HELD_OUT = ("coronacases_002", "coronacases_007")
LUNGS = ("LUNG1-001", "LUNG1-002")


def measure_infection(segmenter: Segmenter, data: Path, case: str, pictures: Path | None) -> Mapping[str, Any]:
    """DSC, NSD at 3 mm and volumes of the infection of one held-out patient."""
    scan = read_volume(data / "covid" / f"{case}_ct.nii.gz")
    truth = read_label_map(data / "covid" / f"{case}_infection.nii.gz")
    segmentation = segmenter.segment(scan)
    if pictures is not None:
        infection = align_truth(scan, truth, truth_kind="infection")
        (pictures / f"{case}.png").write_bytes(
            render_preview(scan, segmentation.labels, (infection > 0).astype(np.uint8))
        )
    prediction = Volume(segmentation.labels, scan.affine)
    (agreement,) = compare_label_maps(prediction, truth, truth_kind="infection")
    return {
        "case": case,
        "dsc": round(agreement.dice, 4),
        "nsd_3mm": round(agreement.surface_dice, 4),
        "predicted_ml": round(agreement.predicted_ml, 1),
        "reference_ml": round(agreement.true_ml, 1),
    }


def measure_lungs(segmenter: Segmenter, data: Path, case: str, pictures: Path | None) -> Mapping[str, Any]:
    """Dice of labels 1 to 3 with lungs ∪ tumour."""
    scan = read_volume(data / "ct" / f"{case}_ct.nii.gz")
    lungs, tumour = (
        align_truth(scan, read_label_map(path), truth_kind="infection") > 0
        for path in (data / "lungs" / f"{case}_lungs.nii.gz", data / "lesions" / f"{case}_gtv.nii.gz")
    )
    segmentation = segmenter.segment(scan)
    if pictures is not None:
        (pictures / f"{case}.png").write_bytes(render_preview(scan, segmentation.labels, None))
    labelled, voxel_ml = segmentation.labels > 0, float(np.prod(scan.spacing_mm)) / 1000
    return {
        "case": case,
        "dice": round(dice(labelled, lungs | tumour), 4),
        "predicted_ml": round(float(labelled.sum()) * voxel_ml, 1),
        "reference_ml": round(float((lungs | tumour).sum()) * voxel_ml, 1),
        "tumour_found": round(float((labelled & tumour).sum() / tumour.sum()), 3),
    }


def main() -> None:
    """Measure every case and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", help="another bundle than the default one")
    parser.add_argument("--pictures", type=Path, help="folder for overlays")
    arguments = parser.parse_args()
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    with Segmenter.open(arguments.model) as segmenter:
        infection = [measure_infection(segmenter, arguments.data, case, arguments.pictures) for case in HELD_OUT]
        lungs = [measure_lungs(segmenter, arguments.data, case, arguments.pictures) for case in LUNGS]
        bundle = segmenter.bundle
        model = {"name": bundle.name, "version": bundle.version, "files": {f.name: f.sha256 for f in bundle.files}}
    mean = round(sum(case["dsc"] for case in infection) / len(infection), 4)
    keep_result("default_bundle", {"model": model, "infection": infection, "mean_dsc": mean, "lungs": lungs})


if __name__ == "__main__":
    main()
