"""The experiment on one screen: fit, train_epoch, validate."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer

from covidseg_runtime.errors import SettingsError
from covidseg_runtime.volume_files import write_json
from covidseg_train.checkpoint import (
    Progress,
    average_weights,
    load_checkpoint,
    load_weights,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from covidseg_train.config import ALL_CASES, DataConfig, ExperimentConfig, SourceConfig
from covidseg_train.datasets.catalog import get_dataset
from covidseg_train.datasets.dataset import find_named_cases
from covidseg_train.device import Precision, choose_device, choose_precision
from covidseg_train.distributed import Ranks, process_group, sum_over_ranks
from covidseg_train.interruption import StopWish, stop_on_signals
from covidseg_train.losses import DeepSupervisionLoss
from covidseg_train.patches import Batch, PatchSampler, TrainingSet
from covidseg_train.preprocess import PreparedCase, prepare_case
from covidseg_train.run_log import RunLog
from covidseg_train.schedule import poly_learning_rate
from covidseg_train.source_commit import source_commit
from covidseg_train.torch_engine import TorchEngine
from covidseg_train.transfer import (
    TransferReport,
    apply_transfer,
    build_network,
    still_normalisations,
    transferred_prefixes,
)
from covidseg_train.unet import SegmentationNetwork
from covidseg_train.validate import validate

LAST = "last.safetensors"
BEST = "best.safetensors"


@dataclass(frozen=True)
class FitResult:
    """What a training left behind.

    Attributes:
        run_folder: Folder with checkpoints, ``config.json``, ``transfer.json``, ``log.csv`` and TensorBoard events.
        best_checkpoint: The checkpoint to export.
        best_score: Its mean validation DSC of the lesion; None without validation cases.
    """

    run_folder: Path
    best_checkpoint: Path
    best_score: float | None


@dataclass(eq=False)
class Training:
    """The moving parts of one training.

    ``network`` holds the weights; ``forward`` is the same network as it is called: compiled, or data-parallel.
    """

    config: ExperimentConfig
    network: SegmentationNetwork
    forward: Callable[..., list[Tensor]]
    average: SegmentationNetwork
    optimiser: Optimizer
    loss: DeepSupervisionLoss
    device: torch.device
    precision: Precision
    progress: Progress
    ranks: Ranks
    transfer: TransferReport


def fit(config: ExperimentConfig, run_folder: Path, *, device: str = "auto") -> FitResult:
    """Train an experiment, or go on with it where ``run_folder`` was left.

    Under ``torchrun`` every process calls this; the batch is shared among them.

    Args:
        config: The experiment.
        run_folder: Folder of this run; made if missing.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.

    Raises:
        SettingsError: If the folder holds a run of another experiment.
        VolumeError: If a case is missing or unsuitable.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; the checkpoint of the last step was written.
    """
    with process_group() as ranks:
        result = _fit_with(ranks, config, run_folder, device)
    if result is None:
        raise KeyboardInterrupt
    return result


def _fit_with(ranks: Ranks, config: ExperimentConfig, run_folder: Path, device: str) -> FitResult | None:
    """Train as one of the ranks; None where somebody asked to stop (an exception would keep the network alive)."""
    run_folder.mkdir(parents=True, exist_ok=True)
    training = start_training(config, choose_device(device), run_folder, ranks)
    sampler = PatchSampler(load_training_sets(config.data, config), config, training.device, ranks)
    validation_cases = load_cases(config.data, config.data.validation, config) if ranks.is_first else []
    if not run_epochs(training, sampler, validation_cases, run_folder):
        return None
    return FitResult(run_folder, run_folder / BEST, training.progress.best_score)


def run_epochs(
    training: Training, sampler: PatchSampler, validation_cases: Sequence[PreparedCase], run_folder: Path
) -> bool:
    """Train, validate and write checkpoints; whether the last epoch was reached before somebody asked to stop."""
    config = training.config
    log = RunLog(
        run_folder, config.run, first_step=training.progress.step, device=training.device, ranks=training.ranks
    )
    with log, stop_on_signals() as wish:
        log.note(training.transfer.summary())
        while training.progress.step < config.run.steps:
            first_step, began, cpu_began = training.progress.step, time.monotonic(), time.process_time()
            loss = train_epoch(training, sampler, log, wish)
            seconds = time.monotonic() - began
            training.progress = replace(
                training.progress,
                seconds=training.progress.seconds + seconds,
                cpu_seconds=training.progress.cpu_seconds + time.process_time() - cpu_began,
            )
            if training.progress.step % config.run.steps_per_epoch:  # stopped before the epoch's end
                write_checkpoint(training, run_folder / LAST)
                return False
            score = finish_epoch(training, validation_cases, run_folder)
            samples = (training.progress.step - first_step) * config.patches.batch_size
            log.epoch(
                training.progress, training.optimiser, loss=loss, score=score, samples_per_second=samples / seconds
            )
            # A signal reaches the ranks at different moments; all stop where one was asked to.
            if sum_over_ranks(torch.tensor(float(wish.is_made), device=training.device)) > 0:
                return False
    return True


def finish_epoch(training: Training, validation_cases: Sequence[PreparedCase], run_folder: Path) -> float | None:
    """Validate where it is due and write the checkpoints; the score comes back."""
    score = validation_score(training, validation_cases)
    is_best = score is not None and score > (training.progress.best_score or -1.0)
    if is_best:
        training.progress = replace(training.progress, best_score=score)
    # The last one comes last: a run killed between the two repeats the epoch and finds the same best again.
    if is_best or not validation_cases:
        write_checkpoint(training, run_folder / BEST)
    write_checkpoint(training, run_folder / LAST)
    return score


def start_training(config: ExperimentConfig, device: torch.device, run_folder: Path, ranks: Ranks) -> Training:
    """Build the moving parts from the seed, take weights over as the strategy says, or go on with an earlier part."""
    if config.patches.batch_size % ranks.world_size:
        raise SettingsError(
            f"patches.batch_size is {config.patches.batch_size}; a multiple of the {ranks.world_size} processes is "
            "expected."
        )
    torch.manual_seed(config.run.seed)
    network = build_network(config)
    transfer = transfer_weights(network, config)
    network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # stub lacks it
    training = Training(
        config=config,
        network=network,
        forward=network,
        average=copy.deepcopy(network),
        optimiser=build_optimiser(network, config),
        loss=DeepSupervisionLoss(),
        device=device,
        precision=choose_precision(config.run.precision, device),
        progress=Progress(commit=source_commit()),
        ranks=ranks,
        transfer=transfer,
    )
    if (run_folder / LAST).exists():
        resume(training, run_folder / LAST)
    elif ranks.is_first:
        write_json(run_folder / "config.json", config.to_dict())
        write_json(run_folder / "transfer.json", transfer.to_dict())
    training.forward = wrap_network(network, config, device, ranks)
    return training


def transfer_weights(network: SegmentationNetwork, config: ExperimentConfig) -> TransferReport:
    """Read the checkpoint that the strategy names, and apply the strategy."""
    source = load_weights(Path(config.transfer.checkpoint)) if config.transfer.checkpoint else {}
    return apply_transfer(network, source, config.transfer)


def wrap_network(
    network: SegmentationNetwork, config: ExperimentConfig, device: torch.device, ranks: Ranks
) -> Callable[..., list[Tensor]]:
    """Compile the network and spread it over the ranks, as the experiment says."""
    wrapped: nn.Module = network
    if ranks.world_size > 1:
        devices = [device] if device.type == "cuda" else None
        # With several tasks a step leaves the heads of the others unused.
        wrapped = DistributedDataParallel(wrapped, devices, find_unused_parameters=len(config.data.tasks()) > 1)
    if config.run.compilation == "off":
        return wrapped
    mode = "reduce-overhead" if config.run.compilation == "cuda_graphs" else None
    compiled: Callable[..., list[Tensor]] = torch.compile(wrapped, mode=mode)
    return compiled


def build_optimiser(network: SegmentationNetwork, config: ExperimentConfig) -> Optimizer:
    """SGD with Nesterov momentum 0.99 as nnU-Net, or AdamW; transferred weights have a group of their own."""
    settings = config.optimiser
    from_transfer = transferred_names(network, config)
    named = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
    groups = [
        {
            "params": [value for name, value in named if (name in from_transfer) == transferred],
            "transferred": transferred,
        }
        for transferred in (False, True)
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "sgd":
        decay = settings.weight_decay
        return SGD(groups, lr=settings.learning_rate, momentum=0.99, nesterov=True, weight_decay=decay)
    return AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def transferred_names(network: SegmentationNetwork, config: ExperimentConfig) -> frozenset[str]:
    """Names of the parameters that the strategy takes over."""
    prefixes = transferred_prefixes(config.transfer)
    return frozenset(name for name, _ in network.named_parameters() if name.startswith(prefixes))


def resume(training: Training, last: Path) -> None:
    """Take over weights, optimiser and progress of an earlier part of the same run."""
    checkpoint = load_checkpoint(last)
    # Where the data lie may change between two parts of a run, what is learned may not.
    if without_places(checkpoint.config) != without_places(training.config):
        raise SettingsError(
            f"{last.parent} holds a run of another experiment ({checkpoint.config.name}); choose another output folder."
        )
    training.network.load_state_dict(checkpoint.part("network"))
    training.average.load_state_dict(checkpoint.part("average") or checkpoint.part("network"))
    restore_optimiser(training.optimiser, checkpoint.part("optimiser"))
    training.progress = replace(checkpoint.progress, commit=training.progress.commit)


def without_places(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment without the folders of this machine; of a checkpoint, its run's name stays."""
    sources = tuple(replace(source, root="") for source in config.data.sources)
    checkpoint = "/".join(Path(config.transfer.checkpoint).parts[-2:])
    return replace(
        config,
        data=replace(config.data, root="", cache="", sources=sources),
        transfer=replace(config.transfer, checkpoint=checkpoint),
    )


def load_training_sets(data: DataConfig, config: ExperimentConfig) -> list[TrainingSet]:
    """Prepare every set that is trained on, or read it from the cache."""
    return [
        TrainingSet(load_cases(source, source.train, config), source.task, source.weight)
        for source in data.training_sets()
    ]


def load_cases(source: SourceConfig | DataConfig, names: Sequence[str], config: ExperimentConfig) -> list[PreparedCase]:
    """Prepare the named cases, or read them from the cache."""
    dataset, cache = get_dataset(source.dataset), Path(config.data.cache)
    if not names:
        return []
    wanted = () if tuple(names) == ALL_CASES else tuple(names)
    found = find_named_cases(dataset, Path(source.root), wanted)
    return [prepare_case(dataset, files, config.grid.spacing_mm, cache) for files in found]


def train_epoch(training: Training, sampler: PatchSampler, log: RunLog, wish: StopWish) -> float:
    """Run the steps that are left of the epoch, or until somebody asks to stop; the mean loss of these steps."""
    losses = []
    while True:
        losses.append(train_step(training, sampler.batch(training.progress.step)))
        log.step(losses[-1])
        is_full = training.progress.step % training.config.run.steps_per_epoch == 0
        # Ranks would stop at different steps and wait for each other; they stop together, at the epoch's end.
        if is_full or (wish.is_made and training.ranks.world_size == 1):
            return float(torch.stack(losses).mean())


def train_step(training: Training, batch: Batch) -> Tensor:
    """One batch forward and back, one step of the optimiser; the loss stays on the device."""
    settings, step = training.config.optimiser, training.progress.step
    training.network.train()
    for module in still_normalisations(training.network, training.config, step):
        module.eval()
    set_learning_rates(training, step)
    images = batch.images.contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast(training.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
        several_tasks = len(training.config.data.tasks()) > 1
        logits = training.forward(images, batch.task) if several_tasks else training.forward(images)
    loss = training.loss(logits, batch.labels)
    training.optimiser.zero_grad(set_to_none=True)
    # The gradients of the ranks add up to that of the whole batch; data parallelism takes their mean.
    (loss * training.ranks.world_size).backward()
    clip_grad_norm_(training.network.parameters(), settings.clip_norm)
    training.optimiser.step()
    # Early on the average would remember random weights; a warm-up of the decay forgets them.
    decay = min(settings.ema_decay, (step + 1) / (step + 10))
    average_weights(training.average, training.network, decay)
    training.progress = replace(training.progress, step=step + 1)
    detached: Tensor = loss.detach()
    return detached


def set_learning_rates(training: Training, step: int) -> None:
    """The schedule's rate for new weights, the strategy's for transferred ones."""
    settings, transfer = training.config.optimiser, training.config.transfer
    rate = poly_learning_rate(step, training.config.run.steps, settings.learning_rate, settings.warmup_steps)
    for group in training.optimiser.param_groups:
        factor = (0.0 if step < transfer.frozen_steps else transfer.rate_factor) if group["transferred"] else 1.0
        group["lr"] = rate * factor


def validation_score(training: Training, cases: Sequence[PreparedCase]) -> float | None:
    """Mean lesion DSC of the averaged network, every few epochs and after the last; None otherwise."""
    run, step = training.config.run, training.progress.step
    is_due = step % (run.validate_every * run.steps_per_epoch) == 0 or step == run.steps
    if not cases or not is_due:
        return None
    engine = TorchEngine(training.average, device=training.device, precision=training.precision)
    return float(np.nanmean(list(validate(engine, cases, training.config).values())))


def write_checkpoint(training: Training, path: Path) -> None:
    """Write everything needed to go on; the first rank does."""
    if not training.ranks.is_first:
        return
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
