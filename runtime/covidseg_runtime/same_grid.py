"""A label map and the volume it belongs to: one grid, or a sentence why they are not of one scan."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.volume import Volume, corner_distance_mm, to_orientation

_SAME_PLACE_VOXELS = 0.5  # how far the corners of two grids may lie apart


def on_grid_of(reference: Volume, other: Volume, *, reference_name: str, name: str) -> NDArray[Any]:
    """The voxels of a label map with its axes in the order of the volume it belongs to.

    Args:
        reference: The volume.
        other: The label map; its axes may be in another order.
        reference_name: What messages call the volume, after "the".
        name: What messages call the label map, after "the".

    Raises:
        VolumeError: If they do not lie on one grid.
    """
    turned = to_orientation(other, reference.orientation)
    if turned.shape != reference.shape:
        raise VolumeError(
            f"the {name} has shape {turned.shape}, the {reference_name} {reference.shape}: they are not of one scan"
        )
    distance = corner_distance_mm(reference, turned)
    if distance > _SAME_PLACE_VOXELS * min(reference.spacing_mm):
        raise VolumeError(
            f"{name} and {reference_name} lie up to {distance:.2f} mm apart in the patient: their "
            "affines differ, so they are not of one scan"
        )
    return turned.voxels
