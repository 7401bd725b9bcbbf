"""Infections that hang together, found by the runs of infected voxels in each row.

Memory and time grow with the infection, not with the box that holds it: an infection scattered over both lungs would
need a number for every voxel of the chest otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.spooling import planes

Indices = NDArray[np.int64]

# Rows (z, y) before a row whose runs may touch its own; the rows after it find it in turn.
_ROWS_BEFORE = ((0, -1), (-1, -1), (-1, 0), (-1, 1))


@dataclass(frozen=True, eq=False)
class Lesions:
    """The 26-connected pieces of one label.

    A run is a stretch of such voxels along x. Its place is counted in a grid with one more row and one more column than
    the label map, so that the ends of two rows are no neighbours.

    Attributes:
        count: Number of lesions.
        lesion_of_run: (n,), 0 to ``count`` - 1.
        starts: (n,) place of each run's first voxel, ascending.
        stops: (n,) one past its last voxel.
        plane: Rows and columns of that grid.
    """

    count: int
    lesion_of_run: Indices
    starts: Indices
    stops: Indices
    plane: tuple[int, int]

    @classmethod
    def of(cls, labels: NDArray[np.uint8], label: int) -> Lesions:
        """Find the lesions in ``labels`` (Z, Y, X): the pieces of ``label``."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        plane = (labels.shape[1] + 1, labels.shape[2] + 1)
        starts, stops = _runs(labels, label)
        first, second = _touching(starts, stops, plane)
        graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(len(starts), len(starts)))
        count, lesion_of_run = connected_components(graph, directed=False) if len(starts) else (0, starts)
        return cls(int(count), lesion_of_run.astype(np.int64), starts, stops, plane)

    @property
    def voxels(self) -> Indices:
        """Number of voxels of each lesion, (count,)."""
        lengths = self.stops - self.starts
        return np.bincount(self.lesion_of_run, weights=lengths, minlength=self.count).astype(np.int64)

    def places(self, chosen: Indices) -> Iterator[tuple[Indices, Indices, Indices]]:
        """Indices (z, y, x) of the voxels of each lesion in ``chosen``."""
        by_lesion = np.argsort(self.lesion_of_run, kind="stable")
        ends = np.cumsum(np.bincount(self.lesion_of_run, minlength=self.count))
        begins = np.append(0, ends[:-1])
        for lesion in chosen:
            runs = by_lesion[begins[lesion] : ends[lesion]]
            rows, x = np.divmod(_ranges(self.starts[runs], self.stops[runs]), self.plane[1])
            z, y = np.divmod(rows, self.plane[0])
            yield z, y, x


def _runs(labels: NDArray[np.uint8], label: int) -> tuple[Indices, Indices]:
    """Starts and stops of all runs."""
    _, height, width = labels.shape
    # One more in front: the first voxel begins a run as any other does.
    flat = np.zeros((height + 1) * (width + 1) + 1, np.bool_)
    plane = flat[1:].reshape(height + 1, width + 1)
    starts, stops = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for z, labels_plane in enumerate(planes(labels)):
        np.equal(labels_plane, label, out=plane[:-1, :-1])
        if flat.any():
            changes = np.flatnonzero(flat[1:] != flat[:-1]) + z * plane.size
            starts.append(changes[::2])
            stops.append(changes[1::2])
    return np.concatenate(starts), np.concatenate(stops)


def _touching(starts: Indices, stops: Indices, plane: tuple[int, int]) -> tuple[Indices, Indices]:
    """Pairs of runs, as two lists of indices, that are neighbours by side, edge or corner."""
    rows, columns = plane
    first, second = [], []
    for z, y in _ROWS_BEFORE:
        shift = (z * rows + y) * columns
        lowest = np.searchsorted(stops, starts + shift, side="left")
        highest = np.maximum(np.searchsorted(starts, stops + shift, side="right"), lowest)
        first.append(np.repeat(np.arange(len(starts)), highest - lowest))
        second.append(_ranges(lowest, highest))
    return np.concatenate(first), np.concatenate(second)


def _ranges(starts: Indices, stops: Indices) -> Indices:
    """The whole numbers of each range from start to stop, one range after the other."""
    lengths = stops - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
