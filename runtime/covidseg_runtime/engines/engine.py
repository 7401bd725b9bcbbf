"""What the pipeline asks of an engine."""

from textwrap import shorten
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# What a GPU is given at once where nobody says otherwise: what TensorRT's plans are built for, too.
GPU_BATCH = 4

_LONGEST_REASON = 300


class Engine(Protocol):
    """Runs a network on tiles.

    Attributes:
        name: For reports, e.g. ``openvino``.
        precision: What it computes in, e.g. ``f32``.
        batch: How many tiles to hand over at once, 1 or more: more than one pays where a GPU computes. ``predict``
            takes any number.
        any_tile: Whether ``predict`` takes tiles of every shape that the bundle's tile plan has a fit for; otherwise
            only of the plan's own.
    """

    name: str
    precision: str
    batch: int
    any_tile: bool

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map tiles (N, 1, Z, Y, X) to logits (N, C, Z, Y, X).

        Raises:
            EngineError: If the engine fails.
        """
        ...

    def close(self) -> None:
        """Give memory and threads back; the engine is not used afterwards."""
        ...


def describe_engine(engine: Engine) -> dict[str, str | int | None]:
    """What computes, as plain values.

    An engine may tell more than the protocol asks, in attributes of these names; what it does not tell is None.

    Returns:
        "name", "provider" (ONNX Runtime's name of what computes), "device" ("cpu" or "cuda:n"), "precision", "threads"
        (of the CPU; None where the engine chooses and does not tell) and "batch" (tiles at once).
    """
    return {
        "name": engine.name,
        "provider": getattr(engine, "provider", None),
        "device": getattr(engine, "device", None),
        "precision": engine.precision,
        "threads": getattr(engine, "threads", None),
        "batch": engine.batch,
    }


def in_one_line(message: str) -> str:
    """An engine's message without line ends, and not longer than an error can bear."""
    return shorten(message, _LONGEST_REASON, placeholder=" …")
