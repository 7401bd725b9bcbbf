"""How good are the lung labels that training is given, made by rule from the CT?

    python benchmarks/lung_labels.py DATA

DATA holds ct/, lungs/ and lesions/ with LUNG1-001 and LUNG1-002 (NSCLC-Radiomics, PleThora). The contours there leave
the tumour out, so the truth is lungs united with the tumour. Measured on the grid of training, 1.5 mm.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from record import keep_result

from covidseg_runtime import read_label_map, read_volume
from covidseg_runtime.metrics import dice
from covidseg_runtime.resampling import GridPair, to_model_grid
from covidseg_runtime.volume import Volume, to_orientation
from covidseg_train.lung_labels import label_lungs

CASES = ("LUNG1-001", "LUNG1-002")
SPACING_MM = (1.5, 1.5, 1.5)


def measure_case(data: Path, case: str) -> dict[str, float | str]:
    """Dice of rule-made lungs with lungs ∪ tumour, with the volumes in mL."""
    scan = to_orientation(read_volume(data / "ct" / f"{case}_ct.nii.gz"), "SPL")
    grids = GridPair.for_spacing(scan.shape, scan.spacing_mm, SPACING_MM)
    hu = np.rint(to_model_grid(scan.voxels, grids)).astype(np.int16)
    lungs, tumour = (
        _on_model_grid(read_label_map(path), grids)
        for path in (data / "lungs" / f"{case}_lungs.nii.gz", data / "lesions" / f"{case}_gtv.nii.gz")
    )
    labels = label_lungs(hu, np.zeros(hu.shape, np.bool_), grids.model_spacing_mm)
    voxel_ml = float(np.prod(grids.model_spacing_mm)) / 1000
    return {
        "case": case,
        "dice": round(dice(labels > 0, lungs | tumour), 4),
        "rule_ml": round(float((labels > 0).sum()) * voxel_ml, 1),
        "reference_ml": round(float((lungs | tumour).sum()) * voxel_ml, 1),
        "tumour_ml": round(float(tumour.sum()) * voxel_ml, 1),
    }


def _on_model_grid(mask: Volume, grids: GridPair) -> NDArray[np.bool_]:
    share = to_model_grid((to_orientation(mask, "SPL").voxels > 0).astype(np.float32), grids)
    return share >= 0.5


def main() -> None:
    """Measure both cases and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    keep_result("lung_labels", {"cases": [measure_case(data, case) for case in CASES]})


if __name__ == "__main__":
    main()
