"""The experiment on one screen: fit, train_epoch, validate."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer

from covidseg_runtime.errors import SettingsError
from covidseg_runtime.volume_files import write_json
from covidseg_train.checkpoint import (
    Progress,
    average_weights,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from covidseg_train.config import ExperimentConfig, OptimiserConfig
from covidseg_train.datasets.catalog import get_dataset
from covidseg_train.datasets.dataset import find_case
from covidseg_train.device import Precision, choose_device, choose_precision
from covidseg_train.losses import DeepSupervisionLoss
from covidseg_train.patches import PatchSampler
from covidseg_train.preprocess import PreparedCase, prepare_case
from covidseg_train.run_log import RunLog
from covidseg_train.schedule import poly_learning_rate
from covidseg_train.torch_engine import TorchEngine
from covidseg_train.unet import UNet3d
from covidseg_train.validate import validate

LAST = "last.safetensors"
BEST = "best.safetensors"


@dataclass(frozen=True)
class FitResult:
    """What a training left behind.

    Attributes:
        run_folder: Folder with checkpoints, ``config.json``, ``log.csv`` and TensorBoard events.
        best_checkpoint: The checkpoint to export.
        best_score: Its mean validation DSC of the infection; None without validation cases.
    """

    run_folder: Path
    best_checkpoint: Path
    best_score: float | None


@dataclass(eq=False)
class Training:
    """The moving parts of one training."""

    config: ExperimentConfig
    network: UNet3d
    average: UNet3d
    optimiser: Optimizer
    loss: DeepSupervisionLoss
    device: torch.device
    precision: Precision
    progress: Progress


def fit(config: ExperimentConfig, run_folder: Path, *, device: str = "auto") -> FitResult:
    """Train an experiment, or go on with it where ``run_folder`` was left.

    Args:
        config: The experiment.
        run_folder: Folder of this run; made if missing.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.

    Raises:
        SettingsError: If the folder holds a run of another experiment.
        VolumeError: If a case is missing or unsuitable.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    training = start_training(config, choose_device(device))
    resume(training, run_folder / LAST)
    write_json(run_folder / "config.json", config.to_dict())
    sampler = PatchSampler(load_cases(config, config.data.train), config)
    validation_cases = load_cases(config, config.data.validation)

    steps = config.run.epochs * config.run.steps_per_epoch
    first_epoch = training.progress.step // config.run.steps_per_epoch
    with RunLog(run_folder, first_step=training.progress.step, steps=steps) as log:
        for epoch in range(first_epoch, config.run.epochs):
            began = time.monotonic()
            loss = train_epoch(training, sampler, log)
            score = validation_score(training, validation_cases, epoch)
            is_best = score is not None and score > (training.progress.best_score or -1.0)
            training.progress = replace(
                training.progress,
                best_score=score if is_best else training.progress.best_score,
                seconds=training.progress.seconds + time.monotonic() - began,
            )
            write_checkpoint(training, run_folder / LAST)
            if is_best or not validation_cases:
                write_checkpoint(training, run_folder / BEST)
            log.epoch(
                {
                    "epoch": epoch + 1,
                    "step": training.progress.step,
                    "seconds": round(training.progress.seconds, 1),
                    "learning_rate": training.optimiser.param_groups[0]["lr"],
                    "loss": loss,
                    "validation_dsc": score,
                }
            )
    return FitResult(run_folder, run_folder / BEST, training.progress.best_score)


def start_training(config: ExperimentConfig, device: torch.device) -> Training:
    """Build network, optimiser and loss from the seed."""
    torch.manual_seed(config.run.seed)
    network = UNet3d(config.network).to(device)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # stub lacks it
    return Training(
        config=config,
        network=network,
        average=copy.deepcopy(network),
        optimiser=build_optimiser(network, config.optimiser),
        loss=DeepSupervisionLoss(),
        device=device,
        precision=choose_precision(config.run.precision, device),
        progress=Progress(),
    )


def build_optimiser(network: UNet3d, settings: OptimiserConfig) -> Optimizer:
    """SGD with Nesterov momentum 0.99 as nnU-Net, or AdamW."""
    if settings.name == "sgd":
        return SGD(
            network.parameters(),
            lr=settings.learning_rate,
            momentum=0.99,
            nesterov=True,
            weight_decay=settings.weight_decay,
        )
    return AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)


def resume(training: Training, last: Path) -> None:
    """Take over weights, optimiser and progress of an earlier part of the same run, if there is one."""
    if not last.exists():
        return
    checkpoint = load_checkpoint(last)
    # Where the data lie may change between two parts of a run, what is learned may not.
    moved = replace(checkpoint.config, data=replace(checkpoint.config.data, root=training.config.data.root))
    if moved != training.config:
        raise SettingsError(
            f"{last.parent} holds a run of another experiment ({checkpoint.config.name}); choose another output folder."
        )
    training.network.load_state_dict(checkpoint.part("network"))
    training.average.load_state_dict(checkpoint.part("average") or checkpoint.part("network"))
    restore_optimiser(training.optimiser, checkpoint.part("optimiser"))
    training.progress = checkpoint.progress


def load_cases(config: ExperimentConfig, names: Sequence[str]) -> list[PreparedCase]:
    """Prepare the named cases, or read them from the cache."""
    dataset, root, cache = get_dataset(config.data.dataset), Path(config.data.root), Path(config.data.cache)
    return [prepare_case(dataset, find_case(dataset, root, name), config.grid.spacing_mm, cache) for name in names]


def train_epoch(training: Training, sampler: PatchSampler, log: RunLog) -> float:
    """Run one epoch of optimiser steps and return the mean loss."""
    training.network.train()
    losses = []
    for _ in range(training.config.run.steps_per_epoch):
        losses.append(train_step(training, sampler))
        log.step(losses[-1])
    return float(np.mean(losses))


def train_step(training: Training, sampler: PatchSampler) -> float:
    """One batch forward and back, one step of the optimiser."""
    config, step = training.config, training.progress.step
    settings = config.optimiser
    rate = poly_learning_rate(
        step, config.run.epochs * config.run.steps_per_epoch, settings.learning_rate, settings.warmup_steps
    )
    for group in training.optimiser.param_groups:
        group["lr"] = rate
    images, labels = sampler.batch(step)
    images = images.to(training.device, memory_format=torch.channels_last_3d)
    with torch.autocast(training.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
        logits = training.network(images)
    loss = training.loss(logits, labels.to(training.device))
    training.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    clip_grad_norm_(training.network.parameters(), settings.clip_norm)
    training.optimiser.step()
    # Early on the average would remember random weights; a warm-up of the decay forgets them.
    decay = min(settings.ema_decay, (step + 1) / (step + 10))
    average_weights(training.average, training.network, decay)
    training.progress = replace(training.progress, step=step + 1)
    return float(loss.detach())


def validation_score(training: Training, cases: Sequence[PreparedCase], epoch: int) -> float | None:
    """Mean infection DSC of the averaged network, every few epochs and after the last; None otherwise."""
    run = training.config.run
    is_due = (epoch + 1) % run.validate_every == 0 or epoch + 1 == run.epochs
    if not cases or not is_due:
        return None
    engine = TorchEngine(training.average, device=training.device, precision=training.precision)
    return float(np.nanmean(list(validate(engine, cases, training.config).values())))


def write_checkpoint(training: Training, path: Path) -> None:
    """Write everything needed to go on."""
    save_checkpoint(
        path,
        training.config,
        training.progress,
        parts={
            "network": training.network.state_dict(),
            "average": training.average.state_dict(),
            "optimiser": optimiser_tensors(training.optimiser),
        },
    )
