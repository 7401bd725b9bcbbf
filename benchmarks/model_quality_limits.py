"""The sections of `model_quality.py` on scans made worse, and on what is no chest."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from model_quality_scans import WINDOW_HU, grey_levels, pure_noise, thick_slices, water_phantom, whole_hu, with_noise
from model_quality_trial import Trial, covid_files, held_out, segment_file

from covidseg_runtime import Segmentation, Segmenter, VolumeError, read_volume
from covidseg_runtime.evaluation import align_truth
from covidseg_runtime.intensity import Window
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.metrics import dice
from covidseg_runtime.volume import Volume

THICK_SLICE_MM, NOISE_SD_HU, SEED = 5.0, 30.0, 2020


def measure_modified(trial: Trial) -> dict[str, Any]:
    """Held-out Coronacases, each made worse in one way: MODIFIED scans, not acquired ones."""
    cases = [case for case in held_out(trial) if case.startswith("coronacases") and trial.wants(case)]
    return {"cases": [row for case in cases for row in _modified_rows(trial, case)]}


def _modified_rows(trial: Trial, case: str) -> Iterator[dict[str, Any]]:
    path, mask = covid_files(trial, case)
    scan = read_volume(path)
    truth = Volume((align_truth(scan, mask, truth_kind="infection") > 0).astype(np.uint8), scan.affine)
    unmodified = dice(trial.segment(path).labels == INFECTION, truth.voxels)
    copies = (
        (
            "5 mm slices",
            whole_hu(thick_slices(scan, THICK_SLICE_MM)),
            thick_slices(truth, THICK_SLICE_MM).voxels >= 0.5,
            None,
        ),
        ("noise of SD 30 HU", with_noise(scan, NOISE_SD_HU, SEED), truth.voxels, None),
        ("0–255 grey levels", grey_levels(scan), truth.voxels, None),
        ("0–255 grey levels, window given", grey_levels(scan), truth.voxels, WINDOW_HU),
    )
    for name, copy, infected, window in copies:
        row = {
            "case": case,
            "modification": name,
            "unmodified_dsc": round(unmodified, 4),
            "dsc": None,
            "dsc_loss": None,
        }
        segmentation, said = _try_copy(trial.segmenter, copy, f"{case} {name}", window)
        if segmentation is not None:
            dsc = dice(segmentation.labels == INFECTION, infected)
            row |= {"dsc": round(dsc, 4), "dsc_loss": round(unmodified - dsc, 4)}
        yield row | said


def _try_copy(
    segmenter: Segmenter, scan: Volume, name: str, window: Window | None = None
) -> tuple[Segmentation | None, dict[str, Any]]:
    """What a user meets who gives this scan as a file; reading judges it too."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(scan.voxels, scan.affine), path)
        return _try_file(segmenter, path, window)


def _try_file(
    segmenter: Segmenter, path: Path, window: Window | None = None
) -> tuple[Segmentation | None, dict[str, Any]]:
    try:
        segmentation = segment_file(segmenter, path, window)
    except VolumeError as error:
        return None, {"refused": str(error), "warnings": []}
    return segmentation, {"refused": None, "warnings": segmentation.warnings}


def measure_out_of_distribution(trial: Trial) -> dict[str, Any]:
    """What comes of scans that show no chest: a refusal, warnings, or a quiet number."""
    rows = []
    for path in sorted((trial.data / "out_of_distribution").glob("*_ct.nii.gz")):
        name = path.name.removesuffix("_ct.nii.gz")
        if trial.wants(name):
            rows.append(_outcome(name, *_try_file(trial.segmenter, path)))
    for name, scan in (("water_phantom", water_phantom()), ("noise", pure_noise(SEED))):
        if trial.wants(name):
            rows.append(_outcome(name, *_try_copy(trial.segmenter, scan, name)))
    return {"cases": rows}


def _outcome(case: str, segmentation: Segmentation | None, said: Mapping[str, Any]) -> dict[str, Any]:
    if segmentation is None:
        return {"case": case, "outcome": "refused", **said}
    measures = segmentation.measures
    return {
        "case": case,
        "outcome": "warned" if segmentation.warnings else "quiet",
        "lung_ml": measures.lung_volume_ml.whole,
        "infection_ml": measures.infection_volume_ml.whole,
        "infection_percent": measures.infection_percent.whole,
        **said,
    }
