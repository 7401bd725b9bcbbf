"""Left and right lung found in the CT itself, for cases whose data set brings no lung masks.

Threshold, remove what is not lung (outside air, airways, bowel), part left from right, fill vessels, then unite
with the infection. Made for training labels at about 1.5 mm; plain rules, no learning.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.lung_box import enclosed_air
from covidseg_runtime.lung_sides import part_left_right

AIRWAY_BELOW_HU = -900
CLOSING_MM = 9.0
SMALLEST_LUNG_ML = 150.0
LARGEST_AIRWAY_ML = 120.0

Spacing = tuple[float, float, float]
Mask = NDArray[np.bool_]


def label_lungs(hu: NDArray[np.int16], infection: Mask, spacing_mm: Spacing) -> NDArray[np.uint8]:
    """Label a chest CT.

    Args:
        hu: (Z, Y, X) in orientation SPL, Hounsfield units.
        infection: (Z, Y, X), the infection mask of the data set; it wins over the lungs.
        spacing_mm: (z, y, x).

    Returns:
        (Z, Y, X) uint8: 0 background, 1 left lung, 2 right lung, 3 infection.

    Raises:
        VolumeError: If no lungs are found.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    air = air_inside_body(hu)
    air &= ~grow_airways(hu, air, spacing_mm)
    lungs = largest_components(air, voxel_ml)
    if not lungs.any():
        raise VolumeError("No lungs were found: no enclosed air of 150 mL or more below -400 HU.")
    left, right = part_left_right(lungs, spacing_mm)
    left, right = close_mask(left, spacing_mm), close_mask(right, spacing_mm)
    labels = np.zeros(hu.shape, np.uint8)
    labels[right] = 2
    labels[left & ~(right & ~lungs)] = 1
    labels[infection] = 3
    return labels


def count_as_lung(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The labels (Z, Y, X) of ``label_lungs`` with every infected voxel given to the lung that is nearest."""
    infected = labels == 3
    if not infected.any():
        return labels
    nearest = ndimage.distance_transform_edt((labels == 0) | infected, return_distances=False, return_indices=True)
    return np.where(infected, labels[tuple(nearest)], labels)


def air_inside_body(hu: NDArray[np.int16]) -> Mask:
    """Voxels below -400 HU that no path of such voxels joins, within their slice, to the scan's side borders."""
    opened: Mask = ndimage.binary_opening(enclosed_air(hu))
    return opened


def grow_airways(hu: NDArray[np.int16], air: Mask, spacing_mm: Spacing) -> Mask:
    """Trachea and main bronchi: dark air joined to the topmost slices' compact central air.

    The threshold falls until what is reached stays below 120 mL, so that the growth does not leak into the lungs.
    """
    seed = _trachea_seed(air, spacing_mm)
    if seed is None:
        return np.zeros_like(air)
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    for threshold in (AIRWAY_BELOW_HU, AIRWAY_BELOW_HU - 25, AIRWAY_BELOW_HU - 50, AIRWAY_BELOW_HU - 75):
        components, _ = ndimage.label((hu < threshold) & air)
        reached = components == components[seed] if components[seed] else np.zeros_like(air)
        if 2.0 < reached.sum() * voxel_ml < LARGEST_AIRWAY_ML:
            airways: Mask = ndimage.binary_dilation(reached, iterations=2)
            return airways
    return np.zeros_like(air)


def _trachea_seed(air: Mask, spacing_mm: Spacing) -> tuple[int, int, int] | None:
    """A voxel of the trachea: from the top, the first compact air of 0.5 to 6 cm² near the middle."""
    pixel_cm2 = spacing_mm[1] * spacing_mm[2] / 100.0
    middle = air.shape[2] / 2
    for z in range(air.shape[0] - 1, air.shape[0] // 2, -1):
        components, count = ndimage.label(air[z])
        for index in range(1, count + 1):
            ys, xs = np.nonzero(components == index)
            box_fill = ys.size / (np.ptp(ys) + 1) / (np.ptp(xs) + 1)
            central = abs(xs.mean() - middle) * spacing_mm[2] < 45.0
            if 0.5 < ys.size * pixel_cm2 < 6.0 and box_fill > 0.5 and central:
                nearest = int(np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2))
                return z, int(ys[nearest]), int(xs[nearest])
    return None


def largest_components(mask: Mask, voxel_ml: float) -> Mask:
    """The largest component, and the second if it is a lung's size (more than 150 mL and an eighth of the first)."""
    components, _ = ndimage.label(mask)
    volumes_ml = np.bincount(components.ravel()) * voxel_ml
    volumes_ml[0] = 0.0
    order = np.argsort(volumes_ml)[::-1][:2]
    kept = [i for i in order if volumes_ml[i] > max(SMALLEST_LUNG_ML, volumes_ml[order[0]] / 8)]
    return np.isin(components, kept)


def close_mask(mask: Mask, spacing_mm: Spacing) -> Mask:
    """Close vessels and borders by a ball of 9 mm, then fill what is enclosed within each slice."""
    if not mask.any():
        return mask
    reach = CLOSING_MM
    pad = [int(np.ceil(reach / mm)) + 1 for mm in spacing_mm]
    padded = np.pad(mask, [(p, p) for p in pad])
    dilated = ndimage.distance_transform_edt(~padded, sampling=spacing_mm) <= reach
    closed = ndimage.distance_transform_edt(dilated, sampling=spacing_mm) > reach
    inner = closed[tuple(slice(p, -p) for p in pad)] | mask
    return np.stack([ndimage.binary_fill_holes(plane) for plane in inner])
