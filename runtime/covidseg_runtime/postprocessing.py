"""Cleaning a label map."""

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.coarse_grid import CoarseLabels
from covidseg_runtime.lesions import Lesions
from covidseg_runtime.measures import INFECTION, LEFT_LUNG, RIGHT_LUNG

# The smaller lung of a patient has at least this share of the larger one's volume.
SMALLEST_SHARE = 0.1
# What a tumour or a collapse cuts off from the rest of a lung, such as its apex; less is a speck.
SMALLEST_CUT_OFF_ML = 10.0


def remove_detached(labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float]) -> float:
    """Clear what hangs together with no lung, in place: bowel gas, folds of skin, fat between the bowels.

    Lung and infection count together, so a lung that is wholly infected stays. Pieces are judged on voxels about 3 mm
    apart; a piece stays if it has a tenth of the largest one's volume, as the smaller of two lungs has. So does one of
    10 mL and more in the upper half of the box around these, where no bowel lies.

    Args:
        labels: (Z, Y, X), 0 to 3, in orientation SPL: z grows towards the head.
        spacing_mm: (z, y, x).

    Returns:
        Infection that was cleared, in mL.
    """
    from scipy import ndimage

    coarse = CoarseLabels.of(labels, spacing_mm)
    labelled = coarse.labels > 0
    pieces, _ = ndimage.label(labelled)
    sizes = np.bincount(pieces.ravel(), minlength=1)[1:]
    if not sizes.size:
        return 0.0
    is_lung = sizes >= SMALLEST_SHARE * sizes.max()
    too_small = np.append(False, ~(is_lung | _cut_off(pieces, sizes, is_lung, coarse.spacing_mm)))
    if not too_small.any():
        return 0.0
    infected_voxels = 0
    detached = coarse.carry(too_small[pieces], labelled, coarse.highest > 0)
    for plane, cleared in coarse.planes_within(detached, labels):
        infected_voxels += int(np.count_nonzero((plane == INFECTION) & cleared))
        plane[cleared] = 0
    return infected_voxels * float(np.prod(spacing_mm)) / 1000.0


def _cut_off(
    pieces: NDArray[np.int32], sizes: NDArray[np.intp], is_lung: NDArray[np.bool_], spacing_mm: tuple[float, ...]
) -> NDArray[np.bool_]:
    """Which pieces, numbered from 1 in (z, y, x), are large and in the upper half of the box around the lungs."""
    from scipy import ndimage

    cut_off = ~is_lung & (sizes * float(np.prod(spacing_mm)) / 1000.0 >= SMALLEST_CUT_OFF_ML)
    if cut_off.any():
        places = ndimage.find_objects(pieces)
        lows, highs = (
            np.array([[getattr(one, end) for one in place] for place in places]) for end in ("start", "stop")
        )
        low, high = lows[is_lung].min(axis=0), highs[is_lung].max(axis=0)
        cut_off &= (lows >= low).all(axis=1) & (highs <= high).all(axis=1)
        cut_off &= lows[:, 0] + highs[:, 0] > low[0] + high[0]
    return cut_off


def remove_small_lesions(
    labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float], min_lesion_ml: float
) -> NDArray[np.uint8]:
    """Turn infections too small to trust back into what surrounds them, in place.

    Args:
        labels: (Z, Y, X), classes 0 to 3.
        spacing_mm: (z, y, x).
        min_lesion_ml: 26-connected infections of a smaller volume are removed.

    Returns:
        ``labels``; a removed infection has the label of the lung that most of its neighbours belong to, or is
        background if none of them is lung.
    """
    from scipy import ndimage

    if min_lesion_ml <= 0:
        return labels
    lesions = Lesions.of(labels, INFECTION)
    volumes_ml = lesions.voxels * float(np.prod(spacing_mm)) / 1000.0
    neighbourhood = np.ones((3, 3, 3), np.bool_)
    for place in lesions.places(np.flatnonzero(volumes_ml < min_lesion_ml)):
        start = [max(0, int(indices.min()) - 1) for indices in place]
        # One voxel around the lesion, where the map has it.
        around = labels[tuple(slice(a, int(indices.max()) + 2) for a, indices in zip(start, place, strict=True))]
        lesion = np.zeros(around.shape, np.bool_)
        lesion[tuple(indices - a for a, indices in zip(start, place, strict=True))] = True
        neighbours = around[ndimage.binary_dilation(lesion, neighbourhood) & ~lesion]
        around[lesion] = _most_frequent_lung(neighbours)
    return labels


def _most_frequent_lung(neighbours: NDArray[np.uint8]) -> int:
    counts = np.bincount(neighbours, minlength=4)
    if not counts[LEFT_LUNG] and not counts[RIGHT_LUNG]:
        return 0
    return LEFT_LUNG if counts[LEFT_LUNG] > counts[RIGHT_LUNG] else RIGHT_LUNG
