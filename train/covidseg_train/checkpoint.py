"""Checkpoints: tensors as safetensors, everything else as JSON in its metadata. No pickle.

One file holds the weights, their moving average, the optimiser's state, the experiment, the step and the score:
enough to go on exactly where it stopped (patches follow from seed and step alone).
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from covidseg_runtime.errors import BundleError
from covidseg_runtime.volume_files import write_bytes_atomic
from covidseg_train.config import ExperimentConfig, config_from_dict
from covidseg_train.transfer import build_network
from covidseg_train.unet import SegmentationNetwork

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: Optimiser steps done.
        best_score: Best mean validation DSC of the infection so far; None before the first validation.
        seconds: Wall time spent training, over all resumed parts.
        cpu_seconds: Processor time of all threads; what else a machine has to do does not lengthen it.
        commit: Of the source that ran last, as `source_commit` has it.
    """

    step: int = 0
    best_score: float | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    commit: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint as read from disk; ``tensors`` are on the CPU."""

    config: ExperimentConfig
    progress: Progress
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name begins with ``prefix.``, under the rest of their name."""
        return part_of(self.tensors, prefix)


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose name begins with ``prefix.``, under the rest of their name."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def save_checkpoint(
    path: Path,
    config: ExperimentConfig,
    progress: Progress,
    *,
    parts: dict[str, dict[str, Tensor]],
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: File to write.
        config: The experiment.
        progress: How far it is.
        parts: Tensors by part (``network``, ``average``, ``optimiser``) and name.
    """
    tensors = {
        f"{part}.{name}": value.detach().cpu().contiguous()
        for part, values in parts.items()
        for name, value in values.items()
    }
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps(config.to_dict()),
        "progress": json.dumps(progress.__dict__),
        "versions": json.dumps({"torch": torch.__version__, "python": platform.python_version()}),
    }
    write_bytes_atomic(path, save(tensors, metadata))


def save_weights(path: Path, weights: Mapping[str, Tensor], origin: Mapping[str, Any]) -> None:
    """Write weights alone, for another training to take over; nothing can go on from them.

    Args:
        path: File to write.
        weights: Tensors by name.
        origin: Where they come from, as plain values: ``bundle`` and ``training``.

    Raises:
        OutputError: If it cannot be written.
    """
    tensors = {f"network.{name}": value.detach().cpu().contiguous() for name, value in weights.items()}
    metadata = {"format_version": str(FORMAT_VERSION), "origin": json.dumps(origin)}
    write_bytes_atomic(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        BundleError: If the file is missing, damaged, of another format, or holds weights alone.
    """
    metadata, tensors = _read(path)
    if "config" not in metadata:
        raise BundleError(f"{path} holds weights alone; give a checkpoint of `covidseg train`.")
    config = config_from_dict(json.loads(metadata["config"]))
    return Checkpoint(config, Progress(**json.loads(metadata["progress"])), tensors)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint (the plain ones if it kept no average), or weights alone, by name.

    Raises:
        BundleError: If the file is missing, damaged or of another format.
    """
    _, tensors = _read(path)
    return part_of(tensors, "average") or part_of(tensors, "network")


def read_origin(path: Path) -> dict[str, Any] | None:
    """Where weights that stand alone come from, as ``save_weights`` was told; None for a checkpoint.

    Raises:
        BundleError: If the file is missing, damaged or of another format.
    """
    metadata, _ = _read(path)
    origin: dict[str, Any] | None = json.loads(metadata.get("origin", "null"))
    return origin


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} is not a readable checkpoint ({error}); train again or give another run.") from error
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise BundleError(f"{path} is not a checkpoint of covidseg's format {FORMAT_VERSION}.")
    return metadata, tensors


def load_network(path: Path) -> tuple[SegmentationNetwork, Checkpoint]:
    """Build the network of a checkpoint with its averaged weights (the plain ones if it kept no average)."""
    checkpoint = load_checkpoint(path)
    network = build_network(checkpoint.config)
    network.load_state_dict(checkpoint.part("average") or checkpoint.part("network"))
    return network.eval(), checkpoint


def optimiser_tensors(optimiser: Optimizer) -> dict[str, Tensor]:
    """State of the optimiser as tensors named ``<parameter index>.<key>``."""
    state: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    return {
        f"{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in state.items()
        for key, value in values.items()
        if value is not None
    }


def restore_optimiser(optimiser: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give the optimiser the state that ``optimiser_tensors`` returned."""
    whole = optimiser.state_dict()
    whole["state"] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        whole["state"].setdefault(int(index), {})[key] = value
    optimiser.load_state_dict(whole)


def average_weights(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move ``average`` towards ``network``: ``average = decay * average + (1 - decay) * network``; copy its buffers."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - decay)
        for kept, current in zip(average.buffers(), network.buffers(), strict=True):
            kept.copy_(current)
