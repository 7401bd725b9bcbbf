"""A fake engine for a host's own tests: no network, a function of each voxel."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


class PointwiseEngine:
    """Applies a function voxel by voxel in place of a network.

    Because each voxel's logits depend on that voxel alone, tiling, flips and axis orders change nothing, which
    makes exact tests possible. Never use it on patients.
    """

    name = "fake-pointwise"
    precision = "f32"
    batch = 1
    any_tile = True

    def __init__(self, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        """Keep the function: tiles (N, 1, Z, Y, X) to logits (N, C, Z, Y, X)."""
        self._function = function

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply the function to a batch of tiles."""
        return self._function(tiles)

    def close(self) -> None:
        """Nothing is held."""
