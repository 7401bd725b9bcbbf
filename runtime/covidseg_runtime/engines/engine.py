"""What the pipeline asks of an engine."""

from textwrap import shorten
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_LONGEST_REASON = 300


class Engine(Protocol):
    """Runs a network on tiles.

    Attributes:
        name: For reports, e.g. ``openvino``.
        precision: What it computes in, e.g. ``f32``.
    """

    name: str
    precision: str

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map tiles (N, 1, Z, Y, X) to logits (N, C, Z, Y, X).

        Raises:
            EngineError: If the engine fails.
        """
        ...

    def close(self) -> None:
        """Give memory and threads back; the engine is not used afterwards."""
        ...


def in_one_line(message: str) -> str:
    """An engine's message without line ends, and not longer than an error can bear."""
    return shorten(message, _LONGEST_REASON, placeholder=" …")
