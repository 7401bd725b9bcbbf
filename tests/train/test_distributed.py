"""Two processes that share a batch (gloo, on the CPU) learn what one process with the whole batch learns."""

import dataclasses
import os
import socket
import subprocess
import sys

import pytest
import torch
from drawn_chest import write_tiny_experiment
from safetensors.torch import load_file

from covidseg_runtime.errors import SettingsError
from covidseg_train.checkpoint import load_checkpoint
from covidseg_train.config import load_config
from covidseg_train.distributed import Ranks, sum_over_ranks
from covidseg_train.fit import LAST, load_training_sets, start_training, train_step
from covidseg_train.patches import PatchSampler

# `covidseg train`, in which each rank writes the gradients and the loss of its first step. The first argument is the
# folder to write to.
WATCHED = """
import sys
from pathlib import Path
import covidseg_train.fit as fit
from covidseg.cli import main
from safetensors.torch import save_file

original = fit.train_step

def train_step(training, batch):
    loss = original(training, batch)
    if training.progress.step == 1:
        gradients = {name: value.grad.contiguous() for name, value in training.network.named_parameters()}
        path = Path(sys.argv[1]) / f"gradients-{training.ranks.rank}.safetensors"
        save_file({**gradients, "loss": loss}, path)
    return loss

fit.train_step = train_step
main(sys.argv[2:])
"""

# `covidseg train`, in which the first rank is asked to stop in its third step. At the end each tells its threads: one
# of the process group that is still there may ask for an interpreter that is ending, and abort the process.
STOPPED = """
import atexit, os, signal, sys
from pathlib import Path
import covidseg_train.fit as fit
from covidseg.cli import main

original = fit.train_step

def train_step(training, batch):
    if training.ranks.is_first and training.progress.step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return original(training, batch)

def tell_threads():
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    print("threads:", *names, file=sys.stderr)

atexit.register(tell_threads)
fit.train_step = train_step
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def experiment(folder):
    """``tiny.toml`` with plain gradients that nothing clips, batches of 4 and two supervised levels."""
    path = write_tiny_experiment(folder)
    text = path.read_text(encoding="utf-8")
    for old, new in {
        'validation = ["case_b"]': "",
        "widths = [4, 8]": "widths = [4, 8, 8]",
        "strides = [[2, 2, 2]]": "strides = [[2, 2, 2], [2, 2, 2]]",
        "supervised_levels = 1": "supervised_levels = 2",
        "shape = [16, 16, 16]": "shape = [16, 16, 16]\nbatch_size = 4",
        'name = "adamw"': 'name = "sgd"\nclip_norm = 1e9',
        "learning_rate = 0.01": "learning_rate = 0.001",  # a large one magnifies what rounding leaves
        "epochs = 4": "epochs = 2",
    }.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(experiment, folder):
    """The training of one process: gradients and loss of its first step, and the whole training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have: another number adds up in another order
    yield train_alone(experiment, folder)
    torch.set_num_threads(threads)


def train_alone(experiment, folder):
    config = load_config(experiment)
    (folder / "alone").mkdir()
    training = start_training(config, torch.device("cpu"), folder / "alone", Ranks())
    sampler = PatchSampler(load_training_sets(config.data, config), config, training.device)
    loss = train_step(training, sampler.batch(0))
    first = {name: value.grad.clone() for name, value in training.network.named_parameters()}
    while training.progress.step < config.run.steps:
        train_step(training, sampler.batch(training.progress.step))
    return {**first, "loss": loss}, training


@pytest.fixture(scope="module")
def two_ranks(experiment, folder, alone):
    """Folder of the same training by two ranks, once the cache is there; its gradients lie beside it."""
    run = folder / "two"
    ends = run_two_ranks("-c", WATCHED, folder, "train", experiment, "-o", run, "--device", "cpu")
    assert [code for code, _ in ends] == [0, 0], "\n".join(error for _, error in ends)
    return run


def run_two_ranks(*arguments):
    """Run Python with these arguments as two ranks, as ``torchrun`` does; exit codes and stderr come back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, error) for rank, error in zip(ranks, errors, strict=True)]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_gradient_of_two_ranks_is_that_of_one_process_with_the_whole_batch(alone, two_ranks, rank):
    shared = load_file(two_ranks.parent / f"gradients-{rank}.safetensors")
    assert shared.keys() == alone[0].keys()
    for name, value in alone[0].items():
        assert value.any(), name
        assert torch.allclose(shared[name], value, rtol=1e-6, atol=1e-6), name


def test_a_training_of_two_ranks_ends_with_the_weights_of_one(alone, two_ranks):
    checkpoint, training = load_checkpoint(two_ranks / LAST), alone[1]
    assert checkpoint.progress.step == training.config.run.steps
    for part, network in (("network", training.network), ("average", training.average)):
        for name, value in network.state_dict().items():
            assert (checkpoint.part(part)[name] - value).abs().max() < 1e-5, name


def test_of_two_ranks_the_first_writes_the_log(two_ranks):
    assert len((two_ranks / "log.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2
    assert len(list((two_ranks / "tensorboard").iterdir())) == 1


def test_both_ranks_stop_at_the_end_of_the_epoch_in_which_one_was_asked_to(experiment, folder, alone):
    run = folder / "stopped"
    ends = run_two_ranks("-c", STOPPED, "train", experiment, "-o", run, "--device", "cpu")
    assert [code for code, _ in ends] == [130, 130], "\n".join(error for _, error in ends)
    assert load_checkpoint(run / LAST).progress.step == 5
    for _, error in ends:
        (threads,) = (line for line in error.splitlines() if line.startswith("threads:"))
        assert "gloo" not in threads


def test_a_batch_that_two_ranks_cannot_share_is_refused(experiment, tmp_path):
    config = load_config(experiment)
    odd = dataclasses.replace(config, patches=dataclasses.replace(config.patches, batch_size=3))
    with pytest.raises(SettingsError, match="batch_size is 3; a multiple of the 2 processes is expected"):
        start_training(odd, torch.device("cpu"), tmp_path, Ranks(0, 2))


def test_alone_a_sum_over_ranks_is_the_tensor_itself():
    tensor = torch.ones(3)
    assert sum_over_ranks(tensor) is tensor
