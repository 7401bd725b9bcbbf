"""The sections of `model_quality.py` on scans as they are: infection, false infection, a nodule, lungs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
from model_quality_scans import are_sides_swapped, dilated, gaps_in_reference
from model_quality_trial import Trial, covid_files, held_out

from covidseg_runtime import compare_label_maps, read_volume
from covidseg_runtime.evaluation import align_truth
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.metrics import dice
from covidseg_runtime.volume import Volume

FEW_VOXELS = {"radiopaedia_29_86490_1_128": "7 infected voxels"}
GROUND_GLASS = "LIDC-IDRI-0002"
LUNGS = ("LUNG1-001", "LUNG1-002")
AROUND_LESION_MM = 5.0
PICTURE_ABOVE_PERCENT = 0.5


@dataclass(frozen=True)
class Chest:
    """A chest without COVID-19.

    Attributes:
        folder: Where in DATA its CT lies.
        case: Its name.
        kind: What it shows.
        marks: Lesions that may be called infection: those within 5 mm of these masks are not counted as false.
    """

    folder: str
    case: str
    kind: str
    marks: tuple[str, ...] = ()


CHESTS = (
    Chest("healthy_and_other", "covidctmd_normal001", "healthy"),
    Chest("ct", "LIDC-IDRI-0001", "nodules", ("noduleany",)),
    Chest("ct", "LIDC-IDRI-0002", "nodules", ("noduleany",)),
    Chest("ct", "LIDC-IDRI-0003", "nodules", ("noduleany",)),
    Chest("ct", "4DLung-113", "tumour", ("gtv",)),
    Chest("healthy_and_other", "covidctmd_cap001", "other pneumonia"),
    Chest("ct", "LUNG1-001", "tumour and effusion", ("gtv", "effusion")),
    Chest("ct", "LUNG1-002", "tumour and effusion", ("gtv", "effusion")),
)
# Here nothing outside the marks should be called infection; pneumonia and the surroundings of large tumours are opaque.
CLEAR_KINDS = ("healthy", "nodules", "tumour")


def measure_covid(trial: Trial) -> dict[str, Any]:
    """Infection of every COVID-19 case that was not learned from."""
    rows = [_covid_row(trial, case) for case in held_out(trial) if trial.wants(case)]
    summaries = {}
    for group in ("coronacases", "radiopaedia"):
        averaged = [row for row in rows if row["case"].startswith(group) and not row["not_averaged"]]
        summaries[group] = _covid_summary(averaged)
        for place, row in _picked_by_dsc(averaged):
            row["picture"] = _covid_picture(trial, row["case"], f"covid_{group}_{place}")
    return {"cases": rows, "summary": summaries}


def _covid_row(trial: Trial, case: str) -> dict[str, Any]:
    path, truth = covid_files(trial, case)
    segmentation = trial.segment(path)
    prediction = Volume(segmentation.labels, read_volume(path).affine)
    (agreement,) = compare_label_maps(prediction, truth, truth_kind="infection")
    use = trial.use(case)
    return {
        "case": case,
        "dsc": round(agreement.dice, 4),
        "nsd_3mm": round(agreement.surface_dice, 4),
        "predicted_ml": round(agreement.predicted_ml, 1),
        "reference_ml": round(agreement.true_ml, 1),
        "volume_error": round(agreement.predicted_ml / agreement.true_ml - 1, 3),
        "not_averaged": FEW_VOXELS.get(case, "" if use == "no" else use),
        "sides_swapped": are_sides_swapped(segmentation.labels, prediction.orientation),
        "warnings": segmentation.warnings,
    }


def _picked_by_dsc(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The worst, the median and the best row, each once; of two rows the worst and the best."""
    ordered = sorted(rows, key=lambda row: float(row["dsc"]))
    places = {len(ordered) // 2: "median", len(ordered) - 1: "best", 0: "worst"}
    for index, place in places.items():
        if ordered:
            yield place, ordered[index]


def _covid_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not rows:
        return {"n": 0}
    return {
        "n": len(rows),
        "mean_dsc": round(fmean(row["dsc"] for row in rows), 4),
        "mean_nsd_3mm": round(fmean(row["nsd_3mm"] for row in rows), 4),
        "median_absolute_volume_error": round(median(abs(row["volume_error"]) for row in rows), 3),
    }


def _covid_picture(trial: Trial, case: str, name: str) -> str | None:
    path, truth = covid_files(trial, case)
    return trial.picture(f"{name}_{case}", path, align_truth(read_volume(path), truth, truth_kind="infection") > 0)


def measure_without_covid(trial: Trial) -> dict[str, Any]:
    """Infection found where there is none, outside of marked lesions and 5 mm around them."""
    rows = [_chest_row(trial, chest) for chest in CHESTS if trial.wants(chest.case)]
    clear = [row for row in rows if row["kind"] in CLEAR_KINDS]
    groups = {"all": clear, "not_learned_from": [row for row in clear if row["in_training"] == "no"]}
    summary = {
        name: {
            "n": len(group),
            "mean_percent": round(fmean(row["false_percent"] for row in group), 3) if group else None,
            "highest_percent": max((row["false_percent"] for row in group), default=None),
        }
        for name, group in groups.items()
    }
    return {"cases": rows, "summary": summary}


def _chest_row(trial: Trial, chest: Chest) -> dict[str, Any]:
    path = trial.data / chest.folder / f"{chest.case}_ct.nii.gz"
    scan, segmentation = read_volume(path), trial.segment(path)
    marked = np.zeros(scan.shape, np.bool_)
    for name in chest.marks:
        marked |= trial.mark(scan, chest.case, name)
    infected, voxel_ml = segmentation.labels == INFECTION, float(np.prod(scan.spacing_mm)) / 1000
    false_ml = np.count_nonzero(infected & ~dilated(marked, scan.spacing_mm, AROUND_LESION_MM)) * voxel_ml
    lung_ml = np.count_nonzero(segmentation.labels) * voxel_ml
    percent = 100 * false_ml / lung_ml if lung_ml else float("nan")
    picture = None
    if percent > PICTURE_ABOVE_PERCENT:
        picture = trial.picture(f"false_infection_{chest.case}", path, marked if chest.marks else None)
    return {
        "case": chest.case,
        "kind": chest.kind,
        "in_training": trial.use(chest.case),
        "lung_ml": round(lung_ml, 1),
        "infection_ml": round(np.count_nonzero(infected) * voxel_ml, 1),
        "false_ml": round(false_ml, 1),
        "false_percent": round(percent, 3),
        "sides_swapped": are_sides_swapped(segmentation.labels, scan.orientation),
        "warnings": segmentation.warnings,
        "picture": picture,
    }


def measure_ground_glass(trial: Trial) -> dict[str, Any]:
    """The ground-glass nodule of LIDC-IDRI-0002, marked by at least half of its readers."""
    rows = []
    if trial.wants(GROUND_GLASS):
        path = trial.data / "ct" / f"{GROUND_GLASS}_ct.nii.gz"
        scan = read_volume(path)
        nodule, infected = trial.mark(scan, GROUND_GLASS, "nodule50"), trial.segment(path).labels == INFECTION
        share = np.count_nonzero(nodule & infected) / np.count_nonzero(nodule)
        row = {"case": GROUND_GLASS, "in_training": trial.use(GROUND_GLASS), "detected": share > 0}
        rows = [{**row, "share_found": round(share, 3), "dsc": round(dice(infected, nodule), 4)}]
    return {"cases": rows}


def measure_lungs(trial: Trial) -> dict[str, Any]:
    """Labels 1 to 3 together against lungs ∪ tumour; the reference does not say which lung is the left one."""
    return {"cases": [_lungs_row(trial, case) for case in LUNGS if trial.wants(case)]}


def _lungs_row(trial: Trial, case: str) -> dict[str, Any]:
    path = trial.data / "ct" / f"{case}_ct.nii.gz"
    scan, labels = read_volume(path), trial.segment(path).labels
    tumour = trial.mark(scan, case, "gtv")
    lungs, voxel_ml = trial.mark(scan, case, "lungs"), float(np.prod(scan.spacing_mm)) / 1000
    reference, gaps = lungs | tumour, gaps_in_reference(lungs, scan.spacing_mm)
    return {
        "case": case,
        "in_training": trial.use(case),
        "dice": round(dice(labels > 0, reference), 4),
        "gaps_in_reference": gaps,
        "dice_without_gaps": round(dice(*(np.delete(mask, gaps, axis=2) for mask in (labels > 0, reference))), 4),
        "predicted_ml": round(np.count_nonzero(labels) * voxel_ml, 1),
        "reference_ml": round(np.count_nonzero(reference) * voxel_ml, 1),
        "tumour_found": round(np.count_nonzero((labels > 0) & tumour) / np.count_nonzero(tumour), 3),
        "sides_swapped": are_sides_swapped(labels, scan.orientation),
        "picture": trial.picture(f"lungs_{case}", path, None),
    }
