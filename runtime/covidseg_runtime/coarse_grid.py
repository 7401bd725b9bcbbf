"""A label map on every n-th voxel: for questions of whole organs, at a hundredth of the cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.spooling import every_nth, planes

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]
Box = tuple[slice, slice, slice]

SAMPLING_MM = 3.0
# A search leans by this: it chooses among voxels that are equally near, and only among them.
TO_LOWER_X = (-1e-9, -1e-7, -1e-5)
TO_HIGHER_X = (-1e-9, -1e-7, 1e-5)


@dataclass(frozen=True, eq=False)
class CoarseLabels:
    """Every n-th voxel of a label map, about 3 mm apart, in the box that holds all labels.

    A cell is the block of voxels from one such voxel up to the next.

    Attributes:
        labels: (z, y, x); without voxels where the map is empty.
        highest: (z, y, x), the highest label in each cell.
        first: Cell (z, y, x) of the whole map with which the box begins.
        steps: n of each axis.
        spacing_mm: (z, y, x) of ``labels``.
    """

    labels: NDArray[np.uint8]
    highest: NDArray[np.uint8]
    first: tuple[int, int, int]
    steps: tuple[int, int, int]
    spacing_mm: Spacing

    @classmethod
    def of(cls, labels: NDArray[np.uint8], spacing_mm: Spacing) -> CoarseLabels:
        """Sample ``labels`` (Z, Y, X)."""
        z, y, x = (max(1, round(SAMPLING_MM / mm)) for mm in spacing_mm)
        zs, ys, xs = label_box(labels)
        first = (zs.start // z, ys.start // y, xs.start // x)
        cells = labels[first[0] * z : zs.stop, first[1] * y : ys.stop, first[2] * x : xs.stop]
        coarse_mm = (spacing_mm[0] * z, spacing_mm[1] * y, spacing_mm[2] * x)
        return cls(every_nth(cells, (z, y, x)), _highest_in_cells(cells, (z, y, x)), first, (z, y, x), coarse_mm)

    def carry(self, chosen: Mask, known: Mask, wanted: Mask) -> Mask:
        """Carry a choice among the known cells over to others.

        Args:
            chosen: (z, y, x), counts where known.
            known: (z, y, x), at least one.
            wanted: (z, y, x), the cells to choose from.

        Returns:
            (z, y, x): wanted, and the nearest known cell is chosen.
        """
        carried = chosen & known & wanted
        unknown = np.argwhere(wanted & ~known)
        nearest = nearest_voxels(known, unknown, self.spacing_mm)
        carried[tuple(unknown.T)] = chosen[tuple(nearest.T)]
        return carried

    def planes_within(self, cells: Mask, labels: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], Mask]]:
        """Find the voxels of chosen cells.

        Args:
            cells: (z, y, x).
            labels: (Z, Y, X), the whole label map.

        Yields:
            For each slice of the box, a window on ``labels``, (Y, X), and which of its voxels are in chosen cells.
        """
        for z, plane in enumerate(cells):
            rows, columns = _bounds(plane.any(axis=1)), _bounds(plane.any(axis=0))
            chosen = plane[rows, columns].repeat(self.steps[2], axis=1).repeat(self.steps[1], axis=0)
            y, x = (self.first[1] + rows.start) * self.steps[1], (self.first[2] + columns.start) * self.steps[2]
            start = (self.first[0] + z) * self.steps[0]
            for labels_plane in planes(labels[start : start + self.steps[0]]):
                window = labels_plane[y : y + chosen.shape[0], x : x + chosen.shape[1]]
                # The last cell of an axis may reach beyond the map.
                yield window, chosen[: window.shape[0], : window.shape[1]]


def label_box(labels: NDArray[np.uint8]) -> Box:
    """Smallest box of (Z, Y, X) outside of which all is 0; without voxels where all is."""
    zs = _bounds(np.array([plane.any() for plane in planes(labels)]))
    if zs.stop == 0:
        return zs, slice(0, 0), slice(0, 0)
    footprint = np.zeros(labels.shape[1:], np.bool_)
    for plane in planes(labels[zs]):
        footprint |= plane > 0
    return zs, _bounds(footprint.any(axis=1)), _bounds(footprint.any(axis=0))


def nearest_voxels(
    known: Mask, voxels: NDArray[np.intp], spacing_mm: Spacing, *, lean_mm: Spacing = TO_LOWER_X
) -> NDArray[np.intp]:
    """Find the known voxel nearest to each of some that are not known.

    A search costs a tenth of a distance transform, as few voxels ask.

    Args:
        known: (Z, Y, X), at least one voxel.
        voxels: (n, 3), indices z, y, x.
        spacing_mm: (z, y, x).
        lean_mm: (z, y, x), which of equally near voxels to take; by default that of lowest x, then y, then z, as
            SciPy's ``distance_transform_edt`` does.

    Returns:
        (n, 3), indices z, y, x.
    """
    from scipy.spatial import cKDTree

    rim = np.argwhere(known & ~eroded(known))
    tree = cKDTree(rim * spacing_mm, balanced_tree=False, compact_nodes=False)
    _, nearest = tree.query(voxels * spacing_mm + np.array(lean_mm))
    found: NDArray[np.intp] = rim[nearest]
    return found


def eroded(mask: Mask) -> Mask:
    """Voxels of (Z, Y, X) whose six neighbours are in the mask too; beyond the border nothing is."""
    core = np.zeros_like(mask)
    inner = (slice(1, -1),) * 3
    core[inner] = mask[inner]
    for axis in range(3):
        for neighbour in (slice(None, -2), slice(2, None)):
            core[inner] &= mask[(*inner[:axis], neighbour, *inner[axis + 1 :])]
    return core


def _highest_in_cells(labels: NDArray[np.uint8], steps: tuple[int, int, int]) -> NDArray[np.uint8]:
    z, y, x = steps
    highest: list[NDArray[np.uint8]] = []
    for index, plane in enumerate(planes(labels)):
        rows = _highest_in_rows(_highest_in_rows(plane, y).T, x).T
        if index % z == 0:
            highest.append(rows)
        else:
            np.maximum(highest[-1], rows, out=highest[-1])
    return np.stack(highest) if highest else np.zeros((0, 0, 0), np.uint8)


def _highest_in_rows(plane: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Maximum of each ``step`` rows; much faster than ``np.maximum.reduceat``."""
    highest = plane[::step].copy()
    for offset in range(1, step):
        rows = plane[offset::step]
        np.maximum(highest[: len(rows)], rows, out=highest[: len(rows)])
    return highest


def _bounds(used: NDArray[np.bool_] | np.bool_) -> slice:
    """From the first True to the last; empty where there is none."""
    places = np.flatnonzero(used)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
