"""Simulated cases as files: hosts are read and their lungs found, and what is simulated in them is written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from isal import igzip
from nibabel import Nifti1Image
from numpy.typing import NDArray
from scipy import ndimage

from covidseg_runtime.errors import SettingsError
from covidseg_runtime.resampling import to_model_grid, to_model_hu
from covidseg_runtime.volume import MODEL_ORIENTATION, Volume, to_orientation
from covidseg_runtime.volume_files import read_volume, write_bytes_atomic, write_label_map
from covidseg_train.datasets.dataset import CaseFiles
from covidseg_train.datasets.reading import read_lesion
from covidseg_train.lung_labels import label_lungs
from covidseg_train.simulated_infection import (
    EXISTING_INFECTION,
    LUMEN_HU,
    SimulatedInfection,
    pair_with_coarse_grid,
    resample_to_shape,
    simulate_infection,
)
from covidseg_train.simulated_lesions import Mask, SimulationSettings, Spacing

_LUNG_LABELS_MM = 2.0  # lungs are found on a grid no finer than this
_HALVED_BELOW_MM = 1.0


def write_simulated_cases(hosts: Sequence[Path], folder: Path, *, per_host: int, seed: int) -> None:
    """Simulate cases and write each as ``simulated_<host>_<number>_ct.nii.gz`` and ``..._infection.nii.gz``.

    A host whose in-plane spacing is below 1.0 mm is halved in the plane first (mean of 2×2 voxels), to save time and
    disk; any other keeps its grid. A case follows from the seed, its host's name and its number alone.

    Args:
        hosts: CTs of chests, ``<host>_ct.nii.gz`` or ``<host>.nii.gz``. Infection marked beside one in
            ``<host>_infection.nii.gz`` stays as it is and is marked in the simulated case as well.
        folder: Existing folder; cases of the same name are replaced.
        per_host: Cases of each host.
        seed: Another seed gives other cases.

    Raises:
        SettingsError: If two hosts have one name.
        VolumeError: If a host is not a CT of a chest.
        OutputError: If a case cannot be written.
    """
    names = [re.sub(r"(_ct)?\.nii(\.gz)?$", "", host.name) for host in hosts]
    if len(set(names)) < len(names):
        raise SettingsError(f"Two hosts have one name among {', '.join(names)}; rename one, as cases are named by it.")
    for name, path in zip(names, hosts, strict=True):
        scan = read_volume(path)
        host = _halve_in_plane(to_orientation(scan, MODEL_ORIENTATION))
        hu = np.clip(np.rint(host.voxels), -32768, 32767).astype(np.int16)
        lungs = _find_lungs(hu, _own_infection(path, name, scan, host.shape), host.spacing_mm)
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
        for number in range(1, per_host + 1):
            rng = np.random.default_rng([seed, digest, number])
            case = simulate_infection(hu, lungs, host.spacing_mm, rng, SimulationSettings())
            stem = folder / f"simulated_{name}_{number}"
            _write_case(stem, case, host.affine, scan.orientation)


def _halve_in_plane(host: Volume) -> Volume:
    """The mean of 2×2 voxels of each slice where they are small; a last odd row is left out."""
    if min(host.spacing_mm[1:]) >= _HALVED_BELOW_MM:
        return host
    z, y, x = host.shape[0], host.shape[1] // 2, host.shape[2] // 2
    halved = host.voxels[:, : 2 * y, : 2 * x].reshape(z, y, 2, x, 2).mean(axis=(2, 4), dtype=np.float32)
    to_host = np.array([[1.0, 0, 0, 0], [0, 2.0, 0, 0.5], [0, 0, 2.0, 0.5], [0, 0, 0, 1.0]])
    return Volume(halved, host.affine @ to_host)


def _own_infection(path: Path, name: str, scan: Volume, shape: tuple[int, int, int]) -> Mask:
    """Infection that is marked beside a host, on its (halved) grid; none where there is no such file."""
    ending = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    marked = path.with_name(f"{name}_infection{ending}")
    if not marked.is_file():
        return np.zeros(shape, np.bool_)
    mask = to_orientation(read_lesion(CaseFiles(name, name, path, marked), scan), MODEL_ORIENTATION)
    own: Mask = (mask if mask.shape == shape else _halve_in_plane(mask)).voxels >= 0.5
    return own


def _find_lungs(hu: NDArray[np.int16], infection: Mask, spacing_mm: Spacing) -> NDArray[np.uint8]:
    """Left and right lung (1, 2), found on a grid of about 2 mm, and the host's own infection (3)."""
    grids = pair_with_coarse_grid(hu.shape, spacing_mm, _LUNG_LABELS_MM)
    coarse_infection = to_model_grid(infection, grids) >= 0.5
    coarse = label_lungs(to_model_hu(hu, grids), coarse_infection, grids.model_spacing_mm)
    lungs = np.zeros(hu.shape, np.uint8)
    # The coarse grid cuts off a rim of part lung, part wall: it would be a dark line between lesion and pleura.
    rim = (hu > LUMEN_HU) & (hu < -250)
    for side in (1, 2):
        found = resample_to_shape((coarse == side).astype(np.float32), hu.shape) >= 0.5
        lungs[ndimage.binary_dilation(found, iterations=2, mask=found | (rim & (lungs == 0)))] = side
    lungs[infection] = EXISTING_INFECTION
    return lungs


def _write_case(stem: Path, case: SimulatedInfection, affine: NDArray[np.float64], orientation: str) -> None:
    ct = to_orientation(Volume(case.hu, affine), orientation)
    truth = to_orientation(Volume(case.lesion.astype(np.uint8), affine), orientation)
    # The CT last: a case that has a CT is whole.
    write_label_map(stem.with_name(f"{stem.name}_infection.nii.gz"), truth.voxels, ct)
    image = Nifti1Image(np.ascontiguousarray(ct.voxels), ct.affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"covidseg simulated infection, research use only"
    write_bytes_atomic(
        stem.with_name(f"{stem.name}_ct.nii.gz"), igzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
    )
