"""A case on the model's grid, made once and cached; the runtime's own resampling is used."""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.resampling import GridPair, to_model_grid
from covidseg_runtime.volume import MODEL_ORIENTATION, to_orientation
from covidseg_runtime.volume_files import read_label_map, read_volume
from covidseg_train.datasets.covid_19_ct_seg_rebuilt import CaseFiles
from covidseg_train.lung_labels import label_lungs

# Grows whenever this file or lung_labels.py gives other arrays, so that old caches are not used.
PREPARATION_VERSION = 1


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case on the model's grid.

    Attributes:
        name: Case name.
        hu: (Z, Y, X) int16 in orientation SPL.
        labels: (Z, Y, X) uint8, classes 0 to 3.
        spacing_mm: (z, y, x) of this grid.
    """

    name: str
    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


def prepare_case(files: CaseFiles, spacing_mm: tuple[float, float, float], cache: Path) -> PreparedCase:
    """Bring a case to the model's grid, from the cache if it was done before.

    Args:
        files: The case.
        spacing_mm: Model grid (z, y, x).
        cache: Folder of prepared cases; made if missing.

    Raises:
        VolumeError: If CT and mask do not share one grid, or no lungs are found.
    """
    path = cache / f"{files.name}-{_key(files, spacing_mm)}.npz"
    if path.is_file():
        with np.load(path) as stored:
            z, y, x = stored["spacing_mm"].tolist()
            return PreparedCase(files.name, stored["hu"], stored["labels"], (z, y, x))
    case = _prepare(files, spacing_mm)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache, suffix=".npz", delete=False) as file:
        np.savez_compressed(file, hu=case.hu, labels=case.labels, spacing_mm=np.array(case.spacing_mm))
    os.replace(file.name, path)
    return case


def _prepare(files: CaseFiles, spacing_mm: tuple[float, float, float]) -> PreparedCase:
    ct = to_orientation(read_volume(files.ct), MODEL_ORIENTATION)
    infection = to_orientation(read_label_map(files.infection), MODEL_ORIENTATION)
    if ct.shape != infection.shape or not np.allclose(ct.affine, infection.affine, atol=1e-3):
        raise VolumeError(f"{files.ct.name} and {files.infection.name} do not share one grid.")
    grids = GridPair.for_spacing(ct.shape, ct.spacing_mm, spacing_mm)
    hu = np.rint(to_model_grid(ct.voxels, grids)).astype(np.int16)
    infected = to_model_grid(infection.voxels > 0, grids) >= 0.5
    labels = label_lungs(hu, infected, grids.model_spacing_mm)
    return PreparedCase(files.name, hu, labels, grids.model_spacing_mm)


def _key(files: CaseFiles, spacing_mm: tuple[float, float, float]) -> str:
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (files.ct, files.infection)]
    text = json.dumps([PREPARATION_VERSION, spacing_mm, *hashes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
