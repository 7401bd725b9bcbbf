"""A case on the model's grid, made once and cached; the runtime's own resampling is used."""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.resampling import GridPair, to_model_grid
from covidseg_runtime.volume import MODEL_ORIENTATION, to_orientation
from covidseg_train.datasets.dataset import CaseFiles, Dataset
from covidseg_train.lung_labels import count_as_lung, label_lungs

# Grows whenever this file, lung_labels.py or a data set's reading gives other arrays, so that old caches are not used.
PREPARATION_VERSION = 2
LESION_LABEL = 3


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case on the model's grid.

    Attributes:
        name: Case name.
        hu: (Z, Y, X) int16 in orientation SPL.
        labels: (Z, Y, X) uint8: 0 background, 1 left lung, 2 right lung, 3 lesion.
        spacing_mm: (z, y, x) of this grid.
        is_whole_chest: False for a crop: its labels hold no lungs, and nothing is known beyond its border.
    """

    name: str
    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    is_whole_chest: bool = True


def prepare_case(
    dataset: Dataset, files: CaseFiles, spacing_mm: tuple[float, float, float], cache: Path
) -> PreparedCase:
    """Bring a case to the model's grid, from the cache if it was done before.

    Args:
        dataset: The data set of the case.
        files: The case.
        spacing_mm: Model grid (z, y, x).
        cache: Folder of prepared cases; made if missing.

    Raises:
        VolumeError: If CT and mask do not share one grid, or no lungs are found in a whole chest.
    """
    path = cache / dataset.name / f"{files.name}-{_key(dataset, files, spacing_mm)}.npz"
    if path.is_file():
        with np.load(path) as stored:
            z, y, x = stored["spacing_mm"].tolist()
            return PreparedCase(files.name, stored["hu"], stored["labels"], (z, y, x), dataset.is_whole_chest)
    case = _prepare(dataset, files, spacing_mm)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        np.savez_compressed(file, hu=case.hu, labels=case.labels, spacing_mm=np.array(case.spacing_mm))
    os.replace(file.name, path)
    return case


def _prepare(dataset: Dataset, files: CaseFiles, spacing_mm: tuple[float, float, float]) -> PreparedCase:
    volumes = dataset.read(files)
    ct, lesion = (to_orientation(volume, MODEL_ORIENTATION) for volume in (volumes.ct, volumes.lesion))
    grids = GridPair.for_spacing(ct.shape, ct.spacing_mm, spacing_mm)
    hu = np.rint(to_model_grid(ct.voxels, grids)).astype(np.int16)
    marked = to_model_grid(lesion.voxels, grids) >= 0.5
    if dataset.is_whole_chest:
        labels = label_lungs(hu, marked, grids.model_spacing_mm)
        labels = count_as_lung(labels) if dataset.marks_lung else labels
    else:
        labels = marked.astype(np.uint8) * LESION_LABEL
    return PreparedCase(files.name, hu, labels, grids.model_spacing_mm, dataset.is_whole_chest)


def _key(dataset: Dataset, files: CaseFiles, spacing_mm: tuple[float, float, float]) -> str:
    hashes = [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (*_files_of(files.ct), *_files_of(files.lesion))
    ]
    text = json.dumps([PREPARATION_VERSION, dataset.name, spacing_mm, list(files.lesion_values), *hashes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
