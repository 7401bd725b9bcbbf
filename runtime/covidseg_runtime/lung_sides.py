"""Which lung is the left one: decided by place in the chest, not by the network.

A patch of lung looks much the same on either side, so a network that must name the side learns it badly and its two
lung classes share the probability that should stand against the infection. Where the lungs lie is plain to see
once they are segmented.
"""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

LEFT_LUNG, RIGHT_LUNG = 1, 2
SAMPLING_MM = 3.0
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
        labels: (Z, Y, X) in orientation SPL; 1 is lung of either side, 3 infection. The sides are found on every n-th
            voxel (about 3 mm).
        spacing_mm: (z, y, x).
    """
    from scipy import ndimage

    z_step, y_step, x_step = (max(1, round(SAMPLING_MM / mm)) for mm in spacing_mm)
    coarse = labels[::z_step, ::y_step, ::x_step] > 0
    if not coarse.any():
        return
    coarse_mm = (spacing_mm[0] * z_step, spacing_mm[1] * y_step, spacing_mm[2] * x_step)
    left, _ = part_left_right(coarse, coarse_mm)
    nearest = ndimage.distance_transform_edt(~coarse, sampling=coarse_mm, return_distances=False, return_indices=True)
    sides = np.where(left[tuple(nearest)], np.uint8(LEFT_LUNG), np.uint8(RIGHT_LUNG))
    rows, columns = np.arange(labels.shape[1]) // y_step, np.arange(labels.shape[2]) // x_step
    for z, plane in enumerate(labels):
        plane_sides = sides[z // z_step][rows[:, None], columns]
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
