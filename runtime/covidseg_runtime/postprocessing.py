"""Cleaning a label map."""

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.coarse_grid import CoarseLabels
from covidseg_runtime.measures import INFECTION, LEFT_LUNG, RIGHT_LUNG, infection_box

# The smaller lung of a patient has at least this share of the larger one's volume.
SMALLEST_SHARE = 0.1


def remove_detached(labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float]) -> float:
    """Clear what hangs together with no lung, in place: bowel gas, folds of skin, fat between the bowels.

    Lung and infection count together, so a lung that is wholly infected stays. Pieces are judged on voxels about 3 mm
    apart; a piece stays if it has a tenth of the largest one's volume, as the smaller of two lungs has.

    Args:
        labels: (Z, Y, X), 0 to 3.
        spacing_mm: (z, y, x).

    Returns:
        Infection that was cleared, in mL.
    """
    from scipy import ndimage

    coarse = CoarseLabels.of(labels, spacing_mm)
    labelled = coarse.labels > 0
    pieces, count = ndimage.label(labelled)
    if count < 2:
        return 0.0
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    kept = sizes >= SMALLEST_SHARE * sizes.max()
    infected_voxels = 0
    for plane, keep in zip(labels, coarse.spread(kept[pieces].astype(np.uint8), labelled), strict=True):
        infected_voxels += int(np.count_nonzero((plane == INFECTION) & (keep == 0)))
        plane *= keep
    return infected_voxels * float(np.prod(spacing_mm)) / 1000.0


def remove_small_lesions(
    labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float], min_lesion_ml: float
) -> NDArray[np.uint8]:
    """Turn infections too small to trust back into what surrounds them.

    Args:
        labels: (Z, Y, X), classes 0 to 3; not changed.
        spacing_mm: (z, y, x).
        min_lesion_ml: 26-connected infections of a smaller volume are removed.

    Returns:
        Labels; a removed infection has the label of the lung that most of its neighbours belong to, or is
        background if none of them is lung.
    """
    from scipy import ndimage

    box = infection_box(labels)
    if box is None or min_lesion_ml <= 0:
        return labels
    cleaned = labels.copy()
    # One voxel around the box, so that every lesion has its neighbours.
    wide = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
    region = cleaned[wide]
    neighbourhood = np.ones((3, 3, 3), bool)
    components, _ = ndimage.label(region == INFECTION, structure=neighbourhood)
    volumes_ml = np.bincount(components.ravel()) * float(np.prod(spacing_mm)) / 1000.0
    for index, place in enumerate(ndimage.find_objects(components), start=1):
        if volumes_ml[index] >= min_lesion_ml:
            continue
        around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in place)
        lesion = components[around] == index
        neighbours = region[around][ndimage.binary_dilation(lesion, neighbourhood) & ~lesion]
        region[around][lesion] = _most_frequent_lung(neighbours)
    return cleaned


def _most_frequent_lung(neighbours: NDArray[np.uint8]) -> int:
    counts = np.bincount(neighbours, minlength=4)
    if not counts[LEFT_LUNG] and not counts[RIGHT_LUNG]:
        return 0
    return LEFT_LUNG if counts[LEFT_LUNG] > counts[RIGHT_LUNG] else RIGHT_LUNG
