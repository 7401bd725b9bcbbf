"""Scans of which a number means little or nothing: what is refused, and what a reader is warned of.

Every check has one limit, and the comment at the limit says what real scans have. "The chests" are 29 CTs: 15 of
COVID-19 patients (Coronacases; Radiopaedia at 128×128), 12 with tumours, effusions and nodules (NSCLC-Radiomics,
LIDC-IDRI, 4D-Lung) and 2 of COVID-CT-MD, 0.7 to 2.8 mm in the plane, 1 to 6 mm between slices. No such chests are a
head phantom and an abdomen with lung bases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.lung_box import enclosed_air
from covidseg_runtime.measures import Measures
from covidseg_runtime.spooling import every_nth, planes

__all__ = ["ScanSample", "check_lungs", "check_scan", "warn_of_window"]

HU = NDArray[np.float32]
Spacing = tuple[float, float, float]

SAMPLING_MM = 5.0
# What read_volume asks of a file: no CT of a chest is without voxels as light as this, or consists of them.
LUNG_OR_AIR_HU = -200
# Resemblance is judged in the window of lung and soft tissue, where neither padding nor bone outweighs the rest.
WINDOW_HU = (-1000, 200)
# The chests have 0.003 at most, five of them with 1024 added 0.17 and more.
LARGEST_UNSHIFTED_SHARE = 0.05
# The chests have 0.959 and more (0.74 with added noise of SD 300 HU), pure noise 0.00.
SMALLEST_VOXEL_LIKENESS = 0.5
# The chests have 0.128 and more; the abdomen 0.089, without its lung bases 0.031; picture values (0 to 255) 0.
SMALLEST_LUNG_SHARE = 0.06
# The chests have 0.84 and more, a crop of one 0.82, the head 0.37; five chests 300 HU too high or too low 0.38 at most.
SMALLEST_TISSUE_SHARE = 0.6
# The chests have 34 HU at most; this is three times that.
LARGEST_NOISE_HU = 100.0
# The chests have 0.937 and more between any two slices, five of them thinned out to 10 mm 0.86; the same five with odd
# slices sorted after even ones 0.70 at most, shuffled 0.48, and the head phantom 0.61.
SMALLEST_SLICE_LIKENESS, THICKEST_LIKE_SLICES_MM = 0.8, 10.0
# Of what the default bundle labels in the chests 0.05 at most; in the abdomen without lung 0.81, in the head 0.44.
AIR_BELOW_HU, LARGEST_OUTSIDE_SHARE = -950, 0.1
# Chests that cut the lungs have lung (found by threshold) on 0.82 of the slices and more, the abdomen on 0.47.
SMALLEST_SHARE_OF_LENGTH = 0.55
# The chests have 2.0 to 6.0 L, found by threshold.
SMALLEST_LUNGS_ML, LARGEST_LUNGS_ML = 500.0, 10_000.0
# The chests have 0.32 (beside an effusion) and more, found by threshold.
SMALLEST_SHARE_OF_A_LUNG = 0.15
NAN = float("nan")
_FACES = ("feet", "head", "front", "back", "patient's right", "patient's left")


@dataclass(frozen=True, eq=False)
class ScanSample:
    """Voxels of a scan about 5 mm apart, and how alike neighbours are.

    Attributes:
        hu: (Z, Y, X) float32.
        beside: (Z, Y, X') float32, the neighbour of each towards higher x; X' is X, or one less at the border.
        slice_likeness: For each slice but the last, its correlation with the next one; NaN where either is constant.
    """

    hu: HU
    beside: HU
    slice_likeness: NDArray[np.float64]

    @classmethod
    def of(cls, voxels: NDArray[Any], spacing_mm: Spacing) -> ScanSample:
        """Sample (Z, Y, X) HU."""
        z, y, x = _steps(spacing_mm)
        hu: list[HU] = []
        beside: list[HU] = []
        likeness: list[float] = []
        last: HU | None = None
        for index, plane in enumerate(planes(voxels)):
            rows = plane[::y].astype(np.float32)
            thin = rows[:, ::x].copy()  # a view would keep the rows
            if last is not None:
                likeness.append(correlation(last, thin))
            last = thin
            if index % z == 0:
                hu.append(thin)
                beside.append(rows[:, 1::x].copy())
        return cls(np.stack(hu), np.stack(beside), np.array(likeness))

    @property
    def tissue_share(self) -> float:
        """Share of what is denser than lung (above -500 HU) that is as dense as soft tissue (-200 to 200 HU)."""
        dense = self.hu[self.hu > -500]
        return _share(np.abs(dense) < 200)

    @property
    def lung_share(self) -> float:
        """Share of what is denser than air (above -900 HU) that is as light as lung (below -300 HU)."""
        dense = self.hu[self.hu > -900]
        return _share(dense < -300)

    @property
    def unshifted_share(self) -> float:
        """Share of voxels where soft tissue lies if 1024 was not subtracted."""
        return _share((self.hu > 900) & (self.hu < 1250))

    @property
    def noise_hu(self) -> float:
        """SD of the noise in soft tissue, from the median difference of neighbours; NaN without soft tissue."""
        first = self.hu[:, :, : self.beside.shape[2]]
        in_tissue = np.abs(first + self.beside) < 2 * 200
        differences = np.abs(self.beside - first)[in_tissue]
        return float(1.4826 * np.median(differences) / math.sqrt(2)) if differences.size else NAN

    @property
    def voxel_likeness(self) -> float:
        """Correlation of voxels beside each other; NaN if there are none."""
        return correlation(self.hu[:, :, : self.beside.shape[2]], self.beside)


def check_scan(voxels: NDArray[Any], spacing_mm: Spacing) -> tuple[str, ...]:
    """Judge a scan before it is segmented.

    Args:
        voxels: (Z, Y, X) in HU, orientation SPL.
        spacing_mm: (z, y, x).

    Returns:
        Sentences for the reader of the result; none for a sound CT of a chest.

    Raises:
        VolumeError: If the values are no Hounsfield units, or noise: no number could mean anything.
    """
    sample = ScanSample.of(voxels, spacing_mm)
    _refuse_other_units(sample)
    _refuse_noise(sample)
    return (*_warn_of_densities(sample), *_warn_of_noise(sample), *_warn_of_slices(sample, spacing_mm[0]))


def warn_of_window(window_hu: tuple[float, float] | None) -> tuple[str, ...]:
    """What a reader has to know of a scan that was given as grey levels.

    Args:
        window_hu: Lowest and highest HU of the window; None for a scan in true HU, of which there is nothing to say.
    """
    if window_hu is None:
        return ()
    low, high = window_hu
    return (
        f"The scan was given as grey levels of a window from {low:g} to {high:g} HU: what lay outside the window is "
        "lost, HU are approximate, volumes and labels are less reliable.",
    )


def check_lungs(
    labels: NDArray[np.uint8], hu: NDArray[Any], spacing_mm: Spacing, measures: Measures
) -> tuple[str, ...]:
    """Judge the lungs that were found in a scan.

    Args:
        labels: (Z, Y, X), 0 to 3, orientation SPL.
        hu: (Z, Y, X), the CT.
        spacing_mm: (z, y, x).
        measures: Of these labels.

    Returns:
        Sentences for the reader of the result; none for whole lungs.
    """
    if not any(plane.any() for plane in planes(labels)):
        return ("The network found no lung: is this a CT of the chest?",)
    return (
        *_warn_of_border(labels),
        *_warn_of_outside_air(labels, hu, spacing_mm),
        *_warn_of_another_region(labels),
        *_warn_of_volume(labels, measures),
        *_warn_of_missing_lung(measures),
    )


def _refuse_other_units(sample: ScanSample) -> None:
    lowest, highest = float(sample.hu.min()), float(sample.hu.max())
    if not math.isfinite(lowest + highest):
        raise VolumeError("The scan holds values that are not finite (NaN or infinity); a CT in HU is expected.")
    given = f"The scan holds values from about {lowest:g} to {highest:g}"  # of the voxels looked at
    if sample.unshifted_share > LARGEST_UNSHIFTED_SHARE and sample.lung_share < SMALLEST_LUNG_SHARE:
        raise VolumeError(
            f"{given}, with air near 0 and soft tissue near 1024 instead of -1000 and 0: the rescale intercept "
            "(mostly -1024) was left out; add it."
        )
    if lowest > LUNG_OR_AIR_HU:
        raise VolumeError(
            f"{given}: nothing as light as lung or air (below {LUNG_OR_AIR_HU} HU); give Hounsfield units, "
            "not windowed, normalised or unshifted values."
        )
    if highest < LUNG_OR_AIR_HU:
        raise VolumeError(f"{given}: nothing but air; give a CT of a chest in Hounsfield units.")


def _refuse_noise(sample: ScanSample) -> None:
    if sample.voxel_likeness < SMALLEST_VOXEL_LIKENESS:
        raise VolumeError(
            f"Neighbouring voxels are hardly alike (correlation {sample.voxel_likeness:.2f}, a CT has 0.9 and more): "
            "this is noise, or voxels in a wrong order; give a CT of a chest."
        )


def _warn_of_densities(sample: ScanSample) -> tuple[str, ...]:
    unreliable = "this is no chest, or the values are no Hounsfield units; volumes and labels are unreliable."
    if sample.lung_share < SMALLEST_LUNG_SHARE:
        return (
            f"Only {sample.lung_share:.0%} of what is denser than air is as light as lung (-900 to -300 HU), a chest "
            f"has 12% and more: {unreliable}",
        )
    if sample.tissue_share < SMALLEST_TISSUE_SHARE:
        return (
            f"Only {sample.tissue_share:.0%} of what is denser than lung has the density of soft tissue (-200 to 200 "
            f"HU), a chest has 82% and more: {unreliable}",
        )
    return ()


def _warn_of_noise(sample: ScanSample) -> tuple[str, ...]:
    if not sample.noise_hu > LARGEST_NOISE_HU:
        return ()
    return (
        f"The noise in soft tissue has a standard deviation of {sample.noise_hu:.0f} HU, above "
        f"{LARGEST_NOISE_HU:.0f} HU: labels are unreliable.",
    )


def _warn_of_slices(sample: ScanSample, slice_mm: float) -> tuple[str, ...]:
    unlike = np.flatnonzero(sample.slice_likeness < SMALLEST_SLICE_LIKENESS)
    if not len(unlike) or slice_mm > THICKEST_LIKE_SLICES_MM:
        return ()
    first = int(unlike[0]) + 1
    return (
        f"Of {len(sample.slice_likeness)} pairs of neighbouring slices {len(unlike)} are hardly alike, the first of "
        f"them slices {first} and {first + 1} from the feet (correlation {sample.slice_likeness[first - 1]:.2f}): "
        "slices are out of order or missing, or the patient moved; volumes are unreliable.",
    )


def _warn_of_border(labels: NDArray[np.uint8]) -> tuple[str, ...]:
    touched = np.zeros(len(_FACES), np.bool_)
    touched[:2] = labels[0].any(), labels[-1].any()
    for plane in planes(labels):
        touched[2:] |= (plane[0].any(), plane[-1].any(), plane[:, 0].any(), plane[:, -1].any())
    cut = [face for face, is_touched in zip(_FACES, touched, strict=True) if is_touched]
    if not cut:
        return ()
    return (
        f"The lungs touch the border of the scan ({', '.join(cut)}): parts outside the field "
        "of view are missing from every volume.",
    )


def _warn_of_outside_air(labels: NDArray[np.uint8], hu: NDArray[Any], spacing_mm: Spacing) -> tuple[str, ...]:
    share = outside_air_share(labels, hu, spacing_mm)
    if share <= LARGEST_OUTSIDE_SHARE:
        return ()
    return (
        f"{share:.0%} of what was labelled is air around the patient, which the network took for lung: volumes, "
        "percentages and labels are unreliable.",
    )


def _warn_of_another_region(labels: NDArray[np.uint8]) -> tuple[str, ...]:
    share = _share(np.array([plane.any() for plane in planes(labels)]))
    if share >= SMALLEST_SHARE_OF_LENGTH:
        return ()
    for end, region, part in ((labels[-1], "abdomen", "bases"), (labels[0], "neck", "tops")):
        if end.any():
            return (
                f"Lung is on only {share:.0%} of the slices and is cut off: this is mostly the {region}, and every "
                f"volume is that of the lungs' {part} alone.",
            )
    return ()


def _warn_of_volume(labels: NDArray[np.uint8], measures: Measures) -> tuple[str, ...]:
    volume_ml = measures.lung_volume_ml.whole
    if not volume_ml or labels[0].any() or labels[-1].any():  # lungs that are cut off are warned of as such
        return ()
    if volume_ml < SMALLEST_LUNGS_ML:
        return (
            f"The lungs have {volume_ml:.0f} mL together, those of an adult more than {SMALLEST_LUNGS_ML:.0f} mL: "
            "lung was missed, or the voxel size is wrong, or this is a child.",
        )
    if volume_ml > LARGEST_LUNGS_ML:
        return (
            f"The lungs have {volume_ml:.0f} mL together, those of an adult less than {LARGEST_LUNGS_ML:.0f} mL: "
            "more than lung was labelled, or the voxel size is wrong.",
        )
    return ()


def _warn_of_missing_lung(measures: Measures) -> tuple[str, ...]:
    volume = measures.lung_volume_ml
    if not volume.whole or volume.left is None or volume.right is None:
        return ()
    side, volume_ml = min(("left", volume.left), ("right", volume.right), key=lambda lung: lung[1])
    share = volume_ml / volume.whole
    if share >= SMALLEST_SHARE_OF_A_LUNG:
        return ()
    return (
        f"The {side} lung has only {share:.0%} of the lung volume: it is missing, airless or outside of the scan, and "
        "what is infected there is not in the numbers.",
    )


def outside_air_share(labels: NDArray[np.uint8], hu: NDArray[Any], spacing_mm: Spacing) -> float:
    """Share of the labelled voxels that are air (below -950 HU) not enclosed by the body; 0 where none is labelled.

    Judged on voxels about 5 mm apart. Lung that the scan cuts off at a side is not enclosed, but denser.

    Args:
        labels: (Z, Y, X).
        hu: (Z, Y, X).
        spacing_mm: (z, y, x).
    """
    steps = _steps(spacing_mm)
    labelled, coarse = every_nth(labels, steps) > 0, every_nth(hu, steps)
    outside = (coarse < AIR_BELOW_HU) & ~enclosed_air(coarse)
    return _share(outside[labelled])


def correlation(first: HU, second: HU) -> float:
    """Pearson's, within `WINDOW_HU`; NaN where either is constant."""
    if not first.size:
        return NAN
    a, b = (np.clip(values, *WINDOW_HU) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(np.vdot(a, a)) * float(np.vdot(b, b)))
    return float(np.vdot(a, b)) / scale if scale > 0 else NAN


def _share(chosen: NDArray[np.bool_]) -> float:
    return float(chosen.mean()) if chosen.size else 0.0


def _steps(spacing_mm: Spacing) -> tuple[int, int, int]:
    z, y, x = (max(1, round(SAMPLING_MM / mm)) for mm in spacing_mm)
    return z, y, x
