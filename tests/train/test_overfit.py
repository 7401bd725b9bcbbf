"""Every network learns one patch by heart, with the real loss, optimiser and step, in seconds."""

import dataclasses

import pytest
import torch

from covidseg_runtime.metrics import dice
from covidseg_train.config import OptimiserConfig, TransferConfig, config_from_dict
from covidseg_train.distributed import Ranks
from covidseg_train.fit import LAST, start_training, train_step, write_checkpoint
from covidseg_train.patches import Batch
from covidseg_train.unet import BENCHMARK_SPEC, UNetSpec

STEPS = 60
SMALL = UNetSpec(classes=2, widths=(4, 8, 8), strides=((2, 2, 2), (2, 2, 2)), supervised_levels=2)
SMALL_BATCH_NORM = dataclasses.replace(SMALL, normalisation="batch")
# Kernels, strides and levels of the benchmark's network, on as small a patch as five halvings leave something of.
BENCHMARK = dataclasses.replace(BENCHMARK_SPEC, widths=(4, 8, 8, 8, 8, 8))
SMALL_PATCH, BENCHMARK_PATCH = (16, 16, 16), (8, 32, 64)


def experiment(network, patch):
    config = config_from_dict(
        {
            "name": "one patch",
            "data": {"dataset": "covid-19-ct-seg-rebuilt", "root": "x", "train": ["a"], "target": "lesion"},
            "network": {"classes": 2},
            "run": {"epochs": 1, "steps_per_epoch": STEPS, "precision": "fp32"},
        }
    )
    return dataclasses.replace(
        config,
        network=network,
        patches=dataclasses.replace(config.patches, shape=patch, batch_size=1),
        tiles=dataclasses.replace(config.tiles, shape=patch),
        optimiser=OptimiserConfig(name="adamw", learning_rate=0.03, ema_decay=0.5),
    )


def one_patch(shape):
    """Two lesions of different brightness in noise of the lungs' density, one of them of few voxels."""
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    large = (z + 0.2) ** 2 + (y - 0.3) ** 2 + x**2 < 0.2
    small = (z - 0.5) ** 2 + (y + 0.5) ** 2 + (x - 0.4) ** 2 < 0.08
    noise = 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    image = -1.0 + 1.5 * large + 0.8 * small + noise
    return Batch(image[None, None], (large | small)[None, None].byte(), "lesion")


def start(config, folder):
    folder.mkdir()
    return start_training(config, torch.device("cpu"), folder, Ranks())


def overfit_dsc(training):
    """Learn one patch; the DSC of the averaged network on it, as validation and export would see it."""
    batch = one_patch(training.config.patches.shape)
    for _ in range(STEPS):
        train_step(training, batch)
    with torch.inference_mode():
        predicted = training.average.eval().finest_logits(batch.images).argmax(dim=1)
    return dice(predicted.numpy(), batch.labels[:, 0].numpy())


@pytest.mark.parametrize(
    ("network", "patch"),
    [(SMALL, SMALL_PATCH), (SMALL_BATCH_NORM, SMALL_PATCH), (BENCHMARK, BENCHMARK_PATCH)],
    ids=["small", "small with batch normalisation", "benchmark"],
)
def test_a_network_learns_one_patch(tmp_path, network, patch):
    assert overfit_dsc(start(experiment(network, patch), tmp_path / "run")) > 0.95


@pytest.mark.parametrize(
    ("network", "patch", "fusion"),
    [
        (SMALL, SMALL_PATCH, "selective"),
        (SMALL, SMALL_PATCH, "concatenation"),
        (BENCHMARK, BENCHMARK_PATCH, "selective"),
    ],
    ids=["small, selective", "small, concatenation", "benchmark, selective"],
)
def test_a_hybrid_learns_one_patch(tmp_path, network, patch, fusion):
    config = experiment(network, patch)
    write_checkpoint(start(config, tmp_path / "source"), tmp_path / "source" / LAST)
    transfer = TransferConfig("hybrid", str(tmp_path / "source" / LAST), fusion)
    assert overfit_dsc(start(dataclasses.replace(config, transfer=transfer), tmp_path / "run")) > 0.95
