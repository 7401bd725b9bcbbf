"""How much border runs through the cell between eight neighbouring voxels, for each of the 256 ways they can differ.

Marching cubes (Lorensen and Cline, SIGGRAPH 1987) with vertices in the middle of the cell's edges, made here from its
rules instead of a printed table:

- On each face, the border joins the middles of the edges whose ends differ. Where all four do, the corners of the
  kind that is rarer in the cell are cut off one by one.
- The joined middles form closed loops. A loop is parted into triangles so that their total area is greatest.

The areas are those of DeepMind's ``surface-distance``, to rounding.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Corner = tuple[int, int, int]
Edge = tuple[Corner, Corner]
Triangle = tuple[int, int, int]

CORNERS: tuple[Corner, ...] = tuple(product((0, 1), (0, 1), (0, 1)))
# Value of each corner in the code of a cell.
CORNER_BITS: dict[Corner, int] = {corner: 1 << index for index, corner in enumerate(CORNERS)}


def surface_areas_mm2(spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Area of the border within a cell in mm².

    Args:
        spacing_mm: Spacing along the three axes.

    Returns:
        Shape (256,), by code: the sum of ``CORNER_BITS`` of the voxels that belong to the mask.
    """
    a, b, c = spacing_mm
    faces_mm2 = np.array([b * c, a * c, a * b])
    areas: NDArray[np.float64] = np.linalg.norm(triangle_vectors() * faces_mm2, axis=2).sum(axis=1)
    return areas


@lru_cache(maxsize=1)
def triangle_vectors() -> NDArray[np.float64]:
    """Area vectors of the triangles of every code, in units of the cell.

    Returns:
        Shape (256, triangles, 3), filled up with zeros.
    """
    by_code = [[_area_vector(*triangle) for triangle in _triangles_of(code)] for code in range(256)]
    vectors = np.zeros((256, max(map(len, by_code)), 3))
    for code, found in enumerate(by_code):
        for index, vector in enumerate(found):
            vectors[code, index] = vector
    return vectors


def _triangles_of(code: int) -> Iterator[NDArray[np.float64]]:
    inside = {corner for corner, bit in CORNER_BITS.items() if code & bit}
    rarer = inside if len(inside) <= 4 else set(CORNERS) - inside
    for loop in _loops(inside, rarer):
        points = np.array([np.mean(edge, axis=0) for edge in loop])
        greatest = max(_triangulations(tuple(range(len(points)))), key=lambda triangles: _total_area(points, triangles))
        yield from (points[list(triangle)] for triangle in greatest)


def _loops(inside: set[Corner], rarer: set[Corner]) -> list[list[Edge]]:
    """Closed loops of edges, joined face by face."""
    neighbours: dict[Edge, list[Edge]] = {}
    for face in _faces():
        for first, second in _segments(face, inside, rarer):
            neighbours.setdefault(first, []).append(second)
            neighbours.setdefault(second, []).append(first)
    loops = []
    while neighbours:
        loop = [next(iter(neighbours))]
        while following := [edge for edge in neighbours.pop(loop[-1]) if edge in neighbours and edge not in loop]:
            loop.append(following[0])
        loops.append(loop)
    return loops


def _faces() -> Iterator[tuple[Corner, ...]]:
    """The four corners of each face in turn."""
    for axis, side in product(range(3), (0, 1)):
        around = ((0, 0), (0, 1), (1, 1), (1, 0))
        yield tuple((*pair[:axis], side, *pair[axis:]) for pair in around)  # type: ignore[misc]  # three ints


def _segments(face: Sequence[Corner], inside: set[Corner], rarer: set[Corner]) -> list[tuple[Edge, Edge]]:
    edges = [_edge(face[i - 1], face[i]) for i in range(4)]  # edge i ends in corner i
    crossed = [edge for edge in edges if (edge[0] in inside) != (edge[1] in inside)]
    if len(crossed) < 4:
        return [(crossed[0], crossed[1])] if crossed else []
    return [(edges[i], edges[(i + 1) % 4]) for i in range(4) if face[i] in rarer]


def _edge(first: Corner, second: Corner) -> Edge:
    return (first, second) if first < second else (second, first)


def _triangulations(points: tuple[int, ...]) -> list[list[Triangle]]:
    """Every way to part a polygon into triangles."""
    if len(points) < 3:
        return [[]]
    first, last = points[0], points[-1]
    return [
        [*left, (first, points[k], last), *right]
        for k in range(1, len(points) - 1)
        for left in _triangulations(points[: k + 1])
        for right in _triangulations(points[k:])
    ]


def _total_area(points: NDArray[np.float64], triangles: Sequence[Triangle]) -> float:
    # Rounded, so that of equally good ways the first wins on every machine.
    return round(sum(float(np.linalg.norm(_area_vector(*points[list(one)]))) for one in triangles), 9)


def _area_vector(
    first: NDArray[np.float64], second: NDArray[np.float64], third: NDArray[np.float64]
) -> NDArray[np.float64]:
    vector: NDArray[np.float64] = np.cross(second - first, third - first) / 2
    return vector
