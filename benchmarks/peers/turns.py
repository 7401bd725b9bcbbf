"""A contestant's side of training_speed.py: describe yourself, then train as many steps as each line of stdin says."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, TextIO

import torch


def claim_stdout() -> TextIO:
    """Keep stdout for the answers; whatever libraries print goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve_turns(
    answers: TextIO,
    description: Mapping[str, Any],
    take_steps: Callable[[int], list[SupportsFloat]],
    device: torch.device,
) -> None:
    """Answer each line ``<unmeasured steps> <measured steps>`` by a line of JSON, until stdin ends.

    Args:
        answers: What ``claim_stdout`` gave.
        description: The first answer, given before any step.
        take_steps: Trains so many steps and returns their losses; the device may still be at work on the last ones.
        device: Where it trains; waited for before the clock is read.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    _answer(answers, {**description, **versions, "device": name})
    for line in sys.stdin:
        unmeasured, measured = map(int, line.split())
        losses = take_steps(unmeasured)
        _wait_for(device)
        start = time.perf_counter()
        losses += take_steps(measured)
        _wait_for(device)
        seconds = time.perf_counter() - start
        gpu_bytes = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
        _answer(answers, {"seconds": seconds, "losses": [float(loss) for loss in losses], "gpu_bytes": gpu_bytes})


def _answer(answers: TextIO, values: Mapping[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
