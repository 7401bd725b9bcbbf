"""Pairs of scans of one patient with known changes: a real scan, and simulated infection that comes, goes, grows.

The infection is simulated, and so is all that differs between the two scans of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from covidseg_runtime.follow_up.labelled_scan import LabelledScan
from covidseg_runtime.volume import MODEL_ORIENTATION, Volume, to_orientation
from covidseg_runtime.volume_files import read_label_map, read_volume
from covidseg_train.lung_labels import label_lungs
from covidseg_train.simulated_infection import EXISTING_INFECTION, simulate_infection
from covidseg_train.simulated_lesions import SimulationSettings

DATA = Path(__file__).parent / "data"
FATES = ("new", "resolved", "grown", "shrunk", "same")
# Lesions of different fates lie farther apart than lesions that are matched.
APART_MM = 12.0
SMALLEST_ML = 1.0
# A grown lesion had, and a shrunk one has, what lies deeper in it than this.
RIM_MM = 3.0
# Many, and spread over the lungs: those that lie near each other share a fate.
MANY_LESIONS = SimulationSettings(
    lesion_count=(16, 16),
    total_ml=(250.0, 250.0),
    peripheral_mm=60.0,
    basal=0.0,
    posterior=0.0,
    bilateral_probability=1.0,
)

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Truth:
    """What was put in, in mL: lesions of each fate, and their volume in the prior and in the current scan."""

    counts: dict[str, int]
    prior_ml: dict[str, float]
    current_ml: dict[str, float]

    def of_kind(self, kind: str) -> tuple[int, float, float]:
        """Number, mL in the prior and mL in the current scan of new, resolved or persistent lesions."""
        fates = ("grown", "shrunk", "same", "own") if kind == "persistent" else (kind,)
        return (
            sum(self.counts.get(fate, 0) for fate in fates),
            sum(self.prior_ml.get(fate, 0.0) for fate in fates),
            sum(self.current_ml.get(fate, 0.0) for fate in fates),
        )

    @property
    def delta_ml(self) -> float:
        return sum(self.current_ml.values()) - sum(self.prior_ml.values())


@dataclass(frozen=True, eq=False)
class Pair:
    """Two scans of one patient, and what differs."""

    prior: LabelledScan
    current: LabelledScan
    truth: Truth


@dataclass(frozen=True)
class Move:
    """How a patient lies elsewhere: rotated about the scan's middle, then shifted, in RAS+."""

    shift_mm: Spacing = (0.0, 0.0, 0.0)
    degrees: Spacing = (0.0, 0.0, 0.0)
    scale: float = 1.0

    def matrix(self, about_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """(4, 4): where a point was before."""
        turned = np.eye(3)
        for axis, degrees in enumerate(self.degrees):
            c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            one = np.insert(np.insert(np.array([[c, -s], [s, c]]), axis, 0.0, 0), axis, 0.0, 1)
            one[axis, axis] = 1.0
            turned = one @ turned
        matrix = np.eye(4)
        matrix[:3, :3] = turned / self.scale
        matrix[:3, 3] = about_mm - matrix[:3, :3] @ (about_mm + self.shift_mm)
        return matrix


def lidc_crop() -> LabelledScan:
    """A real scan of 22 slices without infection; lungs by threshold."""
    turned = to_orientation(read_volume(DATA / "lidc_0001_crop_ct.nii.gz"), MODEL_ORIENTATION)
    return with_lungs(turned, np.zeros(turned.shape, np.bool_), "lidc_0001_crop_ct.nii.gz")


def demo_scan() -> LabelledScan:
    """The demo scan and its infection, on half its resolution; lungs by threshold."""
    scan, infection = (
        to_orientation(read(DATA / "demo" / f"coronacases_002_{what}.nii.gz"), MODEL_ORIENTATION)
        for read, what in ((read_volume, "ct"), (read_label_map, "infection"))
    )
    labels = np.where(infection.voxels > 0, np.uint8(EXISTING_INFECTION), np.uint8(0))
    half = moved(LabelledScan(scan, labels, "half of the demo scan"), Move(), (3.0, 2.72, 2.72))
    return with_lungs(half.volume, half.labels == EXISTING_INFECTION, half.name)


def with_lungs(turned: Volume, infection: Mask, name: str) -> LabelledScan:
    """A scan (Z, Y, X) labelled by the rules that training uses: lungs by threshold."""
    labels = label_lungs(np.asarray(turned.voxels, np.int16), infection, turned.spacing_mm)
    return LabelledScan(turned, labels, name)


def simulated_pair(scan: LabelledScan, seed: int, settings: SimulationSettings = MANY_LESIONS) -> Pair:
    """Put simulated lesions with a fate each into a scan; its own infection stays in both.

    Both scans lie on the grid of the given one, turned to (Z, Y, X).
    """
    turned, labels, mm = scan.turned, scan.turned_labels.voxels, scan.turned.spacing_mm
    hu = np.rint(turned.voxels).astype(np.int16)
    (box,) = ndimage.find_objects((labels > 0).astype(np.uint8))
    rng = np.random.default_rng(seed)
    own = labels[box] == EXISTING_INFECTION
    full = simulate_infection(hu[box], labels[box], mm, rng, settings)
    drawn = full.lesion & ~own
    core = ndimage.distance_transform_edt(drawn, sampling=mm) > RIM_MM
    lesions, fates = _give_fates(drawn, own, mm, rng)
    fates = _without_empty_cores(fates, lesions, core, mm)
    presences = (
        _present(lesions, fates, core, whole=("resolved", "shrunk", "same"), cored=("grown",)),
        _present(lesions, fates, core, whole=("new", "grown", "same"), cored=("shrunk",)),
    )
    scans = []
    for which, present in zip(("prior", "current scan"), presences, strict=True):
        simulated, infected = hu.copy(), labels.copy()
        simulated[box] = _with_simulated(hu[box], full.hu, drawn, present, mm)
        infected[box][present] = EXISTING_INFECTION
        name = f"simulated {which} of {scan.name}"
        scans.append(LabelledScan(Volume(simulated, turned.affine), infected, name))
    return Pair(*scans, _truth(lesions, fates, presences, own, float(np.prod(mm)) / 1000.0))


def _without_empty_cores(fates: Sequence[str], lesions: NDArray[np.int32], core: Mask, mm: Spacing) -> list[str]:
    """What is all rim would not grow or shrink but be new, or gone: it stays the same."""
    cores_ml = np.bincount(lesions[core], minlength=len(fates) + 1)[1:] * np.prod(mm) / 1000.0
    changing = ("grown", "shrunk")
    return [
        "same" if ml < SMALLEST_ML / 2 and fate in changing else fate for fate, ml in zip(fates, cores_ml, strict=True)
    ]


def _give_fates(
    drawn: Mask, own: Mask, spacing_mm: Spacing, rng: np.random.Generator
) -> tuple[NDArray[np.int32], list[str]]:
    """Number each group of lesions (0: none) and draw its fate; what is small or near the own infection is dropped."""
    near = ndimage.distance_transform_edt(~drawn, sampling=spacing_mm) <= APART_MM / 2
    groups, count = ndimage.label(near, structure=np.ones((3, 3, 3)))
    groups[~drawn] = 0
    sizes_ml = np.bincount(groups.ravel(), minlength=count + 1) * np.prod(spacing_mm) / 1000.0
    near_own = ndimage.distance_transform_edt(~own, sampling=spacing_mm) <= APART_MM if own.any() else own
    kept = [g for g in range(1, count + 1) if sizes_ml[g] >= SMALLEST_ML and not near_own[groups == g].any()]
    number = np.zeros(count + 1, np.int32)
    number[kept] = np.arange(1, len(kept) + 1)
    fates = [FATES[index % len(FATES)] for index in range(len(kept))]
    return number[groups], list(rng.permutation(fates))


def _present(
    lesions: NDArray[np.int32], fates: Sequence[str], core: Mask, *, whole: Sequence[str], cored: Sequence[str]
) -> Mask:
    is_whole = np.array([False, *(fate in whole for fate in fates)])
    is_cored = np.array([False, *(fate in cored for fate in fates)])
    return is_whole[lesions] | (is_cored[lesions] & core)


def _with_simulated(
    hu: NDArray[np.int16], simulated: NDArray[np.int16], drawn: Mask, present: Mask, spacing_mm: Spacing
) -> NDArray[np.int16]:
    """The simulated values where a lesion is, its soft border included; of a lesion that is not there, nothing."""
    border = ndimage.distance_transform_edt(~present, sampling=spacing_mm) <= RIM_MM
    return np.where(present | (border & ~drawn), simulated, hu)


def _truth(
    lesions: NDArray[np.int32], fates: Sequence[str], present: tuple[Mask, Mask], own: Mask, voxel_ml: float
) -> Truth:
    ml = [np.bincount(lesions[mask], minlength=len(fates) + 1)[1:] * voxel_ml for mask in present]
    truth = Truth(*({fate: 0 for fate in FATES} for _ in range(3)))
    for fate, prior_ml, current_ml in zip(fates, *ml, strict=True):
        truth.counts[fate] += 1
        truth.prior_ml[fate] += float(prior_ml)
        truth.current_ml[fate] += float(current_ml)
    _, truth.counts["own"] = ndimage.label(own, structure=np.ones((3, 3, 3)))
    truth.prior_ml["own"] = truth.current_ml["own"] = float(own.sum() * voxel_ml)
    return truth


def moved(scan: LabelledScan, move: Move, spacing_mm: Spacing) -> LabelledScan:
    """The scan of the patient who lies elsewhere, on a grid (Z, Y, X) over the same box at another spacing.

    Voxels are means over their own length, as those of thick slices are.
    """
    turned, labels = scan.turned, scan.turned_labels.voxels
    ratio = np.array(spacing_mm) / turned.spacing_mm
    shape = tuple(int(n / r) for n, r in zip(turned.shape, ratio, strict=True))
    to_source = np.diag([*ratio, 1.0])
    to_source[:3, 3] = 0.5 * ratio - 0.5
    affine = turned.affine @ to_source
    middle = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3]
    source = np.linalg.inv(turned.affine) @ move.matrix(middle) @ affine

    def resampled(voxels: NDArray[np.float32], outside: float) -> NDArray[np.float32]:
        for axis, r in enumerate(ratio):
            if r > 1.5:
                voxels = ndimage.uniform_filter1d(voxels, round(r), axis=axis, mode="nearest")
        return ndimage.affine_transform(
            voxels, source[:3, :3], source[:3, 3], output_shape=shape, order=1, mode="constant", cval=outside
        )

    hu = np.rint(resampled(turned.voxels.astype(np.float32), -1024.0)).astype(np.int16)
    shares = [resampled((labels == label).astype(np.float32), 0.0) for label in (1, 2, 3)]
    shares.insert(0, 1.0 - sum(shares))
    mapped = np.argmax(shares, axis=0).astype(np.uint8)
    return LabelledScan(Volume(hu, affine), mapped, scan.name)


def in_orientation(scan: LabelledScan, orientation: str) -> LabelledScan:
    """The same scan with other axes."""
    labels = to_orientation(Volume(scan.labels, scan.volume.affine), orientation)
    return replace(scan, volume=to_orientation(scan.volume, orientation), labels=labels.voxels)
