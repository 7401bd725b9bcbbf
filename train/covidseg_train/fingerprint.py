"""The fingerprint of a data set, and the grid planned from it: nnU-Net's rules.

Spacing and intensities follow Isensee et al., Nature Methods 2021. For transfer, the plan of the target set is imposed
on the sets that are pre-trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.intensity import HounsfieldScaling
from covidseg_runtime.volume import MODEL_ORIENTATION, to_orientation
from covidseg_train.config import GridConfig
from covidseg_train.datasets.dataset import CaseFiles, Dataset

# An axis is coarse where its spacing and, the other way round, its number of voxels differ by more than this.
ANISOTROPY = 3.0
COARSE_AXIS_PERCENTILE = 10.0
CLIPPED_PERCENTILES = (0.5, 99.5)
_LOWEST_HU, _HIGHEST_HU = -2048, 4096


@dataclass(frozen=True)
class Fingerprint:
    """What a data set's cases have in common.

    Attributes:
        cases: How many were measured.
        spacings_mm: Spacing (z, y, x) of each.
        shapes: Voxels (z, y, x) of each.
        lesion_hu: 0.5th, 50th and 99.5th percentile of the HU of all lesion voxels.
        lesion_mean_hu: Their mean.
        lesion_sd_hu: Their standard deviation.
        all_true_hu: False if a case was published as a window of its values.
    """

    cases: int
    spacings_mm: tuple[tuple[float, float, float], ...]
    shapes: tuple[tuple[int, int, int], ...]
    lesion_hu: tuple[float, float, float]
    lesion_mean_hu: float
    lesion_sd_hu: float
    all_true_hu: bool

    @property
    def median_spacing_mm(self) -> tuple[float, float, float]:
        """Median along each axis (z, y, x)."""
        z, y, x = np.median(self.spacings_mm, axis=0).tolist()
        return z, y, x

    def describe(self) -> str:
        """One line on what was measured."""
        spacing = "×".join(f"{mm:.3g}" for mm in self.median_spacing_mm)
        lower, median, upper = self.lesion_hu
        windowed = "" if self.all_true_hu else "; some cases hold a window, not HU"
        return (
            f"median spacing {spacing} mm (z, y, x), lesion {lower:.0f} to {upper:.0f} HU (0.5 to 99.5 %), "
            f"median {median:.0f}{windowed}"
        )


def measure_fingerprint(dataset: Dataset, files: Sequence[CaseFiles]) -> Fingerprint:
    """Read every case once.

    HU are counted to the integer, so that percentiles, mean and SD are those of all lesion voxels, not of a sample.

    Raises:
        VolumeError: If no case has a lesion voxel.
    """
    counts = np.zeros(_HIGHEST_HU - _LOWEST_HU + 1, np.int64)
    spacings, shapes, all_true = [], [], True
    for spacing_mm, shape, values, is_true_hu in _measure_cases(dataset, files):
        spacings.append(spacing_mm)
        shapes.append(shape)
        counts += np.bincount(np.clip(values, _LOWEST_HU, _HIGHEST_HU) - _LOWEST_HU, minlength=counts.size)
        all_true &= is_true_hu
    if not counts.any():
        raise VolumeError(f"The {len(files)} cases of {dataset.name} mark no voxel as {dataset.lesion}.")
    hu = np.arange(_LOWEST_HU, _HIGHEST_HU + 1)
    mean = float(np.average(hu, weights=counts))
    lower, upper = CLIPPED_PERCENTILES
    return Fingerprint(
        cases=len(files),
        spacings_mm=tuple(spacings),
        shapes=tuple(shapes),
        lesion_hu=(_percentile(hu, counts, lower), _percentile(hu, counts, 50.0), _percentile(hu, counts, upper)),
        lesion_mean_hu=mean,
        lesion_sd_hu=float(np.sqrt(np.average((hu - mean) ** 2, weights=counts))),
        all_true_hu=all_true,
    )


def _measure_cases(
    dataset: Dataset, files: Sequence[CaseFiles]
) -> Iterator[tuple[tuple[float, float, float], tuple[int, int, int], NDArray[np.int64], bool]]:
    for one in files:
        volumes = dataset.read(one)
        ct, lesion = (to_orientation(volume, MODEL_ORIENTATION) for volume in (volumes.ct, volumes.lesion))
        values = np.rint(ct.voxels[lesion.voxels > 0]).astype(np.int64)
        yield ct.spacing_mm, ct.shape, values, volumes.is_true_hu


def _percentile(hu: NDArray[np.int64], counts: NDArray[np.int64], percent: float) -> float:
    """The smallest HU below or at which ``percent`` of the voxels lie."""
    return float(hu[np.searchsorted(np.cumsum(counts), percent / 100.0 * counts.sum())])


def plan_grid(fingerprint: Fingerprint) -> GridConfig:
    """The grid nnU-Net would train on at full resolution.

    Spacing is the median; where one axis is more than three times coarser than the others, and has that many fewer
    voxels, its 10th percentile is taken, but no less than the others'. Intensities are clipped to the 0.5th and 99.5th
    percentile of the lesion, then its mean is subtracted and its SD divided by.
    """
    spacing = np.median(fingerprint.spacings_mm, axis=0)
    voxels = np.median(fingerprint.shapes, axis=0)
    coarse = int(np.argmax(spacing))
    others = [axis for axis in range(3) if axis != coarse]
    is_coarse = spacing[coarse] > ANISOTROPY * spacing[others].max()
    if is_coarse and voxels[coarse] * ANISOTROPY < voxels[others].min():
        along_axis = np.percentile(np.array(fingerprint.spacings_mm)[:, coarse], COARSE_AXIS_PERCENTILE)
        spacing[coarse] = max(along_axis, spacing[others].max())
    z, y, x = spacing.tolist()
    lower, _, upper = fingerprint.lesion_hu
    return GridConfig((z, y, x), HounsfieldScaling(lower, upper, fingerprint.lesion_mean_hu, fingerprint.lesion_sd_hu))


def grid_as_toml(grid: GridConfig) -> str:
    """The section ``[grid]`` of an experiment."""
    spacing = ", ".join(f"{mm:.4g}" for mm in grid.spacing_mm)
    scaling = grid.scaling
    values = ", ".join(
        f"{name} = {getattr(scaling, name):.1f}" for name in ("lower_hu", "upper_hu", "mean_hu", "sd_hu")
    )
    return f"[grid]\nspacing_mm = [{spacing}]\nscaling = {{ {values} }}"
