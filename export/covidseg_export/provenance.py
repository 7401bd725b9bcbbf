"""Where a bundle comes from: data and recipe of its training, and what it was pre-trained on."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from covidseg_runtime.errors import CovidsegError
from covidseg_train.checkpoint import Checkpoint, load_checkpoint, read_origin
from covidseg_train.config import ALL_CASES, ExperimentConfig, SourceConfig
from covidseg_train.datasets.catalog import get_dataset
from covidseg_train.datasets.simulated_infection import collections_of


def describe_training(checkpoint: Checkpoint) -> dict[str, Any]:
    """The section ``training`` of bundle.json: data, recipe, seed and cost of the training and its pre-trainings.

    Raises:
        BundleError: If a checkpoint it started from is there and cannot be read.
    """
    return {**_describe_one(checkpoint), "pretraining": describe_pretraining(checkpoint.config)}


def describe_pretraining(config: ExperimentConfig) -> list[dict[str, Any]]:
    """The trainings whose weights were taken over, one from the other, the nearest first.

    A checkpoint that no longer lies where the experiment says ends the list: ``at_hand`` is false there, and nothing
    but its name is known. Weights that came out of a bundle say themselves what they learned from.

    Raises:
        BundleError: If a checkpoint is there and cannot be read.
    """
    found: list[dict[str, Any]] = []
    visited: set[Path] = set()
    while config.transfer.checkpoint:
        path = Path(config.transfer.checkpoint)
        name = "/".join(path.parts[-2:])  # not the folders of this machine
        if path in visited or not path.is_file():
            return [*found, {"checkpoint": name, "at_hand": False}]
        visited.add(path)
        origin = read_origin(path)
        if origin is not None:
            training = {"checkpoint": name, "at_hand": True, "bundle": origin["bundle"], **origin["training"]}
            earlier = training.pop("pretraining", [])
            return [*found, training, *earlier]
        checkpoint = load_checkpoint(path)
        found.append({"checkpoint": name, "at_hand": True, **_describe_one(checkpoint)})
        config = checkpoint.config
    return found


def _describe_one(checkpoint: Checkpoint) -> dict[str, Any]:
    config, progress = checkpoint.config, checkpoint.progress
    own, *others = config.data.training_sets()
    return {
        "experiment": config.name,
        **describe_set(own),
        "validation": list(config.data.validation),
        "test": list(config.data.test),
        "strategy": config.transfer.strategy,
        "sources": [describe_set(source) for source in others],
        "seed": config.run.seed,
        "steps": progress.step,
        "batch_size": config.patches.batch_size,
        "patch_shape": list(config.patches.shape),
        "simulated_masses": config.augmentation.opaque_mass_probability,
        "optimiser": config.optimiser.name,
        "minutes": round(progress.seconds / 60, 1),
        "cpu_seconds": round(progress.cpu_seconds),
        "validation_dsc": progress.best_score,
        "commit": progress.commit,
    }


def describe_set(source: SourceConfig) -> dict[str, Any]:
    """A set that was learned from, without the folders of this machine."""
    dataset, names = get_dataset(source.dataset), _case_names(source)
    return {
        "dataset": dataset.title,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "limits": dataset.limits,
        "is_simulated": dataset.is_simulated,
        "task": source.task,
        "train": names,
        **({"hosts": describe_hosts(names)} if dataset.is_simulated else {}),
    }


def describe_hosts(names: Iterable[str]) -> list[dict[str, str]]:
    """Whose scans simulated cases of these names were drawn into; their licence is that of the cases."""
    return [
        {"dataset": host.title, "licence": host.licence, "citation": host.citation} for host in collections_of(names)
    ]


def _case_names(source: SourceConfig) -> list[str]:
    """The names; where the experiment says all, those that lie there now, or ``*`` if none does."""
    if source.train != ALL_CASES:
        return list(source.train)
    with suppress(CovidsegError):
        found = get_dataset(source.dataset).find_cases(Path(source.root))
        return [case.name for case in found] or list(ALL_CASES)
    return list(ALL_CASES)
