"""Which lung is the left one: decided by place in the chest, not by the network.

A patch of lung looks much the same on either side, so a network that must name the side learns it badly and its two
lung classes share the probability that should stand against the infection. Where the lungs lie is plain to see
once they are segmented.
"""

import math

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.coarse_grid import TO_HIGHER_X, CoarseLabels, eroded, label_box, nearest_voxels
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
    box = label_box(lungs.view(np.uint8))
    left = np.zeros_like(lungs)
    left[box] = _find_left(lungs[box], spacing_mm, middle=lungs.shape[2] // 2 - box[2].start)
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
    middle = math.ceil(labels.shape[2] / coarse.steps[2]) // 2 - coarse.first[2]
    left = _find_left(labelled, coarse.spacing_mm, middle)
    # All lung is labelled left so far.
    right = coarse.carry(~left, labelled, coarse.highest > 0)
    for plane, in_right in coarse.planes_within(right, labels):
        np.copyto(plane, np.uint8(RIGHT_LUNG), where=in_right & (plane == LEFT_LUNG))


def _find_left(lungs: Mask, spacing_mm: Spacing, middle: int) -> Mask:
    """The left part of ``lungs``, (Z, Y, X) in the box that holds them; ``middle`` is the x that parts the scan."""
    core = lungs
    for _ in range(round(DEEPEST_EROSION_MM / min(spacing_mm)) + 1):
        pieces = _two_lungs(core, spacing_mm)
        if pieces is not None:
            return _nearer_left(lungs, *pieces, spacing_mm)
        core = eroded(core)
    left = lungs.copy()
    left[:, :, : max(0, middle)] = False
    return left


def _two_lungs(core: Mask, spacing_mm: Spacing) -> tuple[Mask, Mask] | None:
    """The two largest pieces as (left, right), if both are large and they lie side by side."""
    from scipy import ndimage

    components, _ = ndimage.label(core)
    sizes = np.bincount(components.ravel())[1:]
    order = np.argsort(sizes)[::-1][:2]
    if len(order) < 2 or sizes[order[1]] < SMALLEST_SHARE * sizes.sum():
        return None
    first, second = components == order[0] + 1, components == order[1] + 1
    apart_z, apart_y, apart_x = (_centre(first) - _centre(second)) * spacing_mm
    # The upper and lower part of one lung lie above each other.
    if abs(apart_x) < max(abs(apart_z), abs(apart_y)):
        return None
    return (first, second) if apart_x > 0 else (second, first)


def _centre(piece: Mask) -> NDArray[np.float64]:
    """Mean index (z, y, x)."""
    counts = [np.count_nonzero(piece, axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    return np.array([along @ np.arange(len(along)) / along.sum() for along in counts])


def _nearer_left(lungs: Mask, left: Mask, right: Mask, spacing_mm: Spacing) -> Mask:
    """Voxels of ``lungs`` in the left piece, or outside of both and no farther from it than from the right one."""
    nearer = left.copy()
    rest = np.argwhere(lungs & ~left & ~right)
    # Of two equally near voxels, one in either piece, the one of higher x is in the left piece.
    nearest = nearest_voxels(left | right, rest, spacing_mm, lean_mm=TO_HIGHER_X)
    nearer[tuple(rest.T)] = left[tuple(nearest.T)]
    return nearer
