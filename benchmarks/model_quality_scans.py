"""What `model_quality.py` makes of scans and of a bundle's training: pure functions, and scans that show no chest."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.resampling import GridPair, to_model_grid
from covidseg_runtime.volume import MODEL_ORIENTATION, Volume, reorient_array, to_orientation
from covidseg_train.datasets.covid_19_ct_seg_rebuilt import patient_of

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

WINDOW_HU = (-1250.0, 250.0)
LOWEST_HU, HIGHEST_HU = -1024, 3071
_LISTS_OF_NAMES = ("train", "cases", "hosts")


def use_in_training(training: Mapping[str, Any], case: str) -> str:
    """Whether a bundle met the patient of a case: "learned from", "validated the training" or "no".

    Args:
        training: The section ``training`` of bundle.json. Further sets and pre-training count; a name that holds the
            patient's, such as that of a crop or of a simulated case, counts as that patient.
        case: Name of a case of DATA.
    """
    patient = patient_of(case).removesuffix("_128")  # the rebuilt low-resolution cases carry it, the originals do not
    if any(patient in name for name in _learned_names(training)):
        return "learned from"
    if any(patient in name for name in training.get("validation", ())):
        return "validated the training"
    return "no"


def unnamed_sources(training: Mapping[str, Any]) -> list[str]:
    """What was learned from besides the patients named: sets taken as a whole, pre-trainings that were not at hand."""
    whole = {str(one["dataset"]) for one in _mappings(training) if "*" in one.get("train", ())}
    lost = {str(one["checkpoint"]) for one in _mappings(training) if one.get("at_hand") is False}
    return sorted(whole | lost)


def _mappings(value: object) -> Iterator[Mapping[str, Any]]:
    """``value`` and every mapping below it, however deep sets lie in sets."""
    if isinstance(value, Mapping):
        yield value
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _mappings(item)


def _learned_names(training: Mapping[str, Any]) -> Iterator[str]:
    """Case names of every set; those that were only validated or tested are left out."""
    for one in _mappings(training):
        for key in _LISTS_OF_NAMES:
            names = one.get(key, ())
            if isinstance(names, list | tuple):
                yield from (name for name in names if isinstance(name, str))


def dilated(mask: Mask, spacing_mm: Spacing, distance_mm: float) -> Mask:
    """The voxels within ``distance_mm`` of the mask, centre to centre; any three axes. Computed in the mask's box."""
    from scipy.ndimage import distance_transform_edt

    wider = mask.copy()
    if not mask.any():
        return wider
    box = []
    for axis, mm in enumerate(spacing_mm):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = int(distance_mm / mm) + 1
        box.append(slice(max(0, int(used[0]) - margin), int(used[-1]) + margin + 1))
    inside = tuple(box)
    wider[inside] = distance_transform_edt(~mask[inside], sampling=spacing_mm) <= distance_mm
    return wider


def are_sides_swapped(labels: NDArray[np.uint8], orientation: str) -> bool | None:
    """Whether the left lung's centre lies to the patient's right of the right lung's; None where a lung is missing.

    Args:
        labels: (X, Y, Z); 1 left lung, 2 right lung.
        orientation: Of the three axes, such as ``"LPS"``.
    """
    turned = reorient_array(labels, orientation, MODEL_ORIENTATION)  # (Z, Y, X): x grows towards the patient's left
    left, right = (np.count_nonzero(turned == lung, axis=(0, 1)) for lung in (1, 2))
    if not left.any() or not right.any():
        return None
    x = np.arange(turned.shape[2])
    return bool(left @ x / left.sum() <= right @ x / right.sum())


def gaps_in_reference(mask: Mask, spacing_mm: Spacing) -> list[int]:
    """Slices on which a reader skipped part of an organ: 5 mL and 30 % less than the median of the seven around it.

    Args:
        mask: (X, Y, Z), slices along Z.
        spacing_mm: (x, y, z).

    Returns:
        Indices of these slices; they follow from the reference alone.
    """
    area_ml = np.count_nonzero(mask, axis=(0, 1)) * float(np.prod(spacing_mm)) / 1000
    usual_ml = np.array([np.median(area_ml[max(0, z - 3) : z + 4]) for z in range(len(area_ml))])
    used = np.flatnonzero(area_ml)
    gaps = np.flatnonzero((area_ml < 0.7 * usual_ml) & (usual_ml - area_ml > 5.0))
    return [int(z) for z in gaps if used[0] < z < used[-1]]


def thick_slices(volume: Volume, slice_mm: float) -> Volume:
    """A copy of thicker slices by the runtime's own resampling: every source slice counts, nearer ones more.

    Args:
        volume: (X, Y, Z) in any orientation: HU, or a mask of 0 and 1.
        slice_mm: Wanted distance of slices; the nearest that divides the scan's length is taken.

    Returns:
        (Z, Y, X) float32 in orientation SPL, the plane unchanged: HU, or the share of the mask in each voxel.
    """
    turned = to_orientation(volume, MODEL_ORIENTATION)
    grids = GridPair.for_spacing(turned.shape, turned.spacing_mm, (slice_mm, *turned.spacing_mm[1:]))
    ratio = grids.source_shape[0] / grids.model_shape[0]
    to_source_index = np.diag([ratio, 1.0, 1.0, 1.0])
    to_source_index[0, 3] = (ratio - 1) / 2  # the first thick slice is centred on the thin ones it was made of
    return Volume(to_model_grid(turned.voxels, grids), turned.affine @ to_source_index)


def whole_hu(volume: Volume) -> Volume:
    """The volume as a scanner stores it: int16, within [-1024, 3071] HU."""
    return Volume(np.clip(np.rint(volume.voxels), LOWEST_HU, HIGHEST_HU).astype(np.int16), volume.affine)


def with_noise(volume: Volume, sd_hu: float, seed: int) -> Volume:
    """A copy with Gaussian noise of this SD, each voxel its own, as int16 HU."""
    noise = np.random.default_rng(seed).normal(0.0, sd_hu, volume.shape)
    return whole_hu(Volume(volume.voxels + noise, volume.affine))


def grey_levels(volume: Volume) -> Volume:
    """A copy that holds the window [-1250, 250] HU as int16 values from 0 to 255, as pictures do."""
    lowest, highest = WINDOW_HU
    share = (np.clip(volume.voxels, lowest, highest) - lowest) / (highest - lowest)
    return Volume(np.rint(share * 255).astype(np.int16), volume.affine)


def water_phantom() -> Volume:
    """A cylinder of 200 mm in diameter and 150 mm in length, 0 HU, in air: (X, Y, Z) int16, LPS."""
    x, y = np.ogrid[:128, :128]
    hu = np.full((128, 128, 50), -1000, np.int16)
    hu[(x - 63.5) ** 2 + (y - 63.5) ** 2 < 40**2] = 0
    return Volume(hu, np.diag([-2.5, -2.5, 3.0, 1.0]))


def pure_noise(seed: int) -> Volume:
    """Gaussian noise of -500 ± 300 HU everywhere: (X, Y, Z) int16, LPS."""
    nothing = Volume(np.full((128, 128, 50), -500, np.int16), np.diag([-2.5, -2.5, 3.0, 1.0]))
    return with_noise(nothing, 300.0, seed)
