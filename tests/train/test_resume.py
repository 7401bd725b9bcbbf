"""A training that is killed or stopped, and started again, ends with the weights of one that ran through."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from drawn_chest import write_tiny_experiment

from covidseg_train.checkpoint import load_checkpoint
from covidseg_train.config import load_config
from covidseg_train.fit import BEST, LAST, fit

# Runs `covidseg train` and lets the process send itself a signal at a chosen call of a chosen function, so that it
# always falls into the same moment. Arguments: signal, module, function, call, then those of covidseg.
CHILD = """
import importlib, os, sys
from covidseg.cli import main

number, module, function, call = int(sys.argv[1]), importlib.import_module(sys.argv[2]), sys.argv[3], int(sys.argv[4])
original, calls = getattr(module, function), []

def signalled(*args, **kwargs):
    calls.append(function)
    if len(calls) == call:
        os.kill(os.getpid(), number)
    return original(*args, **kwargs)

setattr(module, function, signalled)
main(sys.argv[5:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def experiment(folder):
    """``tiny.toml``: 3 epochs of 5 steps, the patches augmented, validated after the last."""
    path = write_tiny_experiment(folder)
    text = path.read_text(encoding="utf-8").replace("epochs = 4", "epochs = 3")
    path.write_text(text.replace("validate_every = 2", "validate_every = 3"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(experiment, folder):
    """The checkpoint of a run that nothing disturbed."""
    fit(load_config(experiment), folder / "whole", device="cpu")
    return load_checkpoint(folder / "whole" / LAST)


def train_until(number, place, experiment, run):
    """`covidseg train` in a process of its own, with a signal at a place: module, function and call."""
    arguments = [str(number.value), *map(str, place), "train", str(experiment), "-o", str(run), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


def assert_equal_bits(checkpoint, other):
    assert checkpoint.tensors.keys() == other.tensors.keys()
    assert {name.partition(".")[0] for name in checkpoint.tensors} == {"network", "average", "optimiser"}
    for name, value in checkpoint.tensors.items():
        assert torch.equal(value, other.tensors[name]), name


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(experiment, folder, whole):
    run = folder / "killed"
    # In the middle of the second epoch; then at its end, while the next checkpoint lies unfinished beside the last one.
    killed = train_until(signal.SIGKILL, ("covidseg_train.fit", "average_weights", 8), experiment, run)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert load_checkpoint(run / LAST).progress.step == 5
    killed = train_until(signal.SIGKILL, ("os", "replace", 1), experiment, run)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert load_checkpoint(run / LAST).progress.step == 5
    assert len(list(run.glob(".last.safetensors.*"))) == 1
    fit(load_config(experiment), run, device="cpu")
    assert_equal_bits(load_checkpoint(run / LAST), whole)


def test_a_run_killed_between_its_two_checkpoints_keeps_the_best(experiment, folder, whole):
    run = folder / "between"
    # The checkpoints in order: the last after epochs 1 and 2, best and last after epoch 3. The fourth is not written.
    killed = train_until(signal.SIGKILL, ("covidseg_train.fit", "save_checkpoint", 4), experiment, run)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert load_checkpoint(run / LAST).progress.step == 10
    assert load_checkpoint(run / BEST).progress.step == 15
    result = fit(load_config(experiment), run, device="cpu")
    assert_equal_bits(load_checkpoint(run / LAST), whole)
    assert_equal_bits(load_checkpoint(run / BEST), load_checkpoint(folder / "whole" / BEST))
    assert result.best_score == whole.progress.best_score


def test_ctrl_c_ends_between_two_steps_with_a_checkpoint(experiment, folder, whole):
    run = folder / "interrupted"
    stopped = train_until(signal.SIGINT, ("covidseg_train.fit", "average_weights", 8), experiment, run)
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.endswith("Interrupted.\n")
    assert "Traceback" not in stopped.stderr
    assert load_checkpoint(run / LAST).progress.step == 8
    fit(load_config(experiment), run, device="cpu")
    assert_equal_bits(load_checkpoint(run / LAST), whole)
