"""Which lung is the left one: decided by place in the chest, not by the network.

A patch of lung looks much the same on either side, so a network that must name the side learns it badly and its two
lung classes share the probability that should stand against the infection. Where the lungs lie is plain to see
once they are segmented.
"""

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.coarse_grid import CoarseLabels
from covidseg_runtime.measures import LEFT_LUNG, RIGHT_LUNG

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

DEEPEST_EROSION_MM = 15.0
# A second piece smaller than this is a speck, not a lung.
SMALLEST_SHARE = 0.15


def part_left_right(lungs: Mask, spacing_mm: Spacing) -> tuple[Mask, Mask]:
    """Part the lungs, which may touch, into left and right.

    They are eroded until they fall into two large pieces that lie side by side; each voxel goes to the nearer piece.
    If that never happens (one lung missing or fully dense), the middle of the scan parts them.

    Args:
        lungs: (Z, Y, X) in orientation SPL: x grows towards the patient's left.
        spacing_mm: (z, y, x).

    Returns:
        Left and right mask; every voxel of ``lungs`` is in exactly one.
    """
    from scipy import ndimage

    core = lungs
    for _ in range(round(DEEPEST_EROSION_MM / min(spacing_mm)) + 1):
        pieces = _two_lungs(core, spacing_mm)
        if pieces is not None:
            to_left, to_right = (ndimage.distance_transform_edt(~piece, sampling=spacing_mm) for piece in pieces)
            nearer_left = to_left <= to_right
            return lungs & nearer_left, lungs & ~nearer_left
        core = ndimage.binary_erosion(core)
    left = lungs.copy()
    left[:, :, : lungs.shape[2] // 2] = False
    return left, lungs & ~left


def label_sides(labels: NDArray[np.uint8], spacing_mm: Spacing) -> None:
    """Give every lung voxel the label of its side, in place.

    Args:
        labels: (Z, Y, X) in orientation SPL; 1 is lung of either side, 3 infection. The sides are found on voxels
            about 3 mm apart.
        spacing_mm: (z, y, x).
    """
    coarse = CoarseLabels.of(labels, spacing_mm)
    labelled = coarse.labels > 0
    if not labelled.any():
        return
    left, _ = part_left_right(labelled, coarse.spacing_mm)
    sides = np.where(left, np.uint8(LEFT_LUNG), np.uint8(RIGHT_LUNG))
    for plane, plane_sides in zip(labels, coarse.spread(sides, labelled), strict=True):
        lung = plane == LEFT_LUNG
        plane[lung] = plane_sides[lung]


def _two_lungs(core: Mask, spacing_mm: Spacing) -> tuple[Mask, Mask] | None:
    """The two largest pieces as (left, right), if both are large and they lie side by side."""
    from scipy import ndimage

    components, _ = ndimage.label(core)
    sizes = np.bincount(components.ravel())[1:]
    order = np.argsort(sizes)[::-1][:2]
    if len(order) < 2 or sizes[order[1]] < SMALLEST_SHARE * sizes.sum():
        return None
    first, second = components == order[0] + 1, components == order[1] + 1
    centres = [np.array([axis.mean() for axis in np.nonzero(piece)]) * spacing_mm for piece in (first, second)]
    apart_z, apart_y, apart_x = centres[0] - centres[1]
    # The upper and lower part of one lung lie above each other.
    if abs(apart_x) < max(abs(apart_z), abs(apart_y)):
        return None
    return (first, second) if apart_x > 0 else (second, first)
