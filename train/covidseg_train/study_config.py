"""A study as frozen values, read from a TOML file: sources × strategies × folds.

Sections that shape every training (``grid``, ``network``, ``patches``, ``augmentation``, ``optimiser``, ``tiles``)
are those of an experiment. Folders are below the data root, that of simulated cases below the study's own folder.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from covidseg_runtime.errors import SettingsError
from covidseg_train.config import (
    CONFIGS_FOLDER,
    AugmentationConfig,
    GridConfig,
    OptimiserConfig,
    PatchConfig,
    RunConfig,
    SourceConfig,
    Strategy,
    Target,
    TileConfig,
)
from covidseg_train.hybrid import Fusion
from covidseg_train.toml_files import build_from_dict, read_toml
from covidseg_train.unet import UNetSpec

STUDIES_FOLDER = CONFIGS_FOLDER / "studies"


@dataclass(frozen=True)
class TargetConfig:
    """The set every arm is tested on.

    Attributes:
        dataset: Name of the data set.
        root: Folder of its cases, below the data root.
        cases: All cases; a fold tests on those it does not train on.
        not_averaged: Cases that are tested and shown but left out of every mean.
        beside: Sets that every fold learns from as well, such as chests without infection.
    """

    dataset: str
    root: str
    cases: tuple[str, ...]
    not_averaged: tuple[str, ...] = ()
    beside: tuple[SourceConfig, ...] = ()


@dataclass(frozen=True)
class FoldConfig:
    """One fold.

    Attributes:
        train: Cases learned from; their number is the fold's shots.
        curve: Test cases scored every few epochs to draw the convergence curve; they select nothing.
    """

    train: tuple[str, ...]
    curve: tuple[str, ...] = ()


@dataclass(frozen=True)
class LesionSource:
    """A source of weights.

    Attributes:
        name: As in the table, e.g. ``effusion``.
        sets: Data sets of the pre-training; tasks of different names make it multi-task.
        kind: ``lesion`` for real lesions, ``simulated`` for simulated ones.
    """

    name: str
    sets: tuple[SourceConfig, ...]
    kind: Literal["lesion", "simulated"] = "lesion"


@dataclass(frozen=True)
class SimulationConfig:
    """Simulated cases that the study makes for itself.

    Attributes:
        hosts: CTs of lungs that hold no infection, below the data root.
        per_host: Simulated cases a host.
        seed: They follow from it.
    """

    hosts: tuple[str, ...]
    per_host: int = 4
    seed: int = 0


@dataclass(frozen=True)
class RefinementConfig:
    """A further training of every cell, from its last weights: the learning rate rises once more and falls again.

    Attributes:
        learning_rate: At its beginning.
        run: Length and seed.
        augmentation: In place of the study's; None for the same.
    """

    learning_rate: float
    run: RunConfig
    augmentation: AugmentationConfig | None = None


@dataclass(frozen=True)
class StudyConfig:
    """Everything that decides a study.

    Attributes:
        strategies: Those compared; ``scratch`` is always run.
        joint: Sources that are also trained on together with the target, all lesions one class.
        fusion: Of ``hybrid``, as in an experiment.
        frozen_steps: Of every strategy but ``scratch``, as in an experiment.
        rate_factor: Likewise.
        told_apart: ``data.target`` of every training: lesion alone, or lung and lesion.
        pretraining: Length and seed of a pre-training.
        fine_tuning: Length and seed of a training on a fold.
        refinement: What follows it, one after the other.
    """

    name: str
    target: TargetConfig
    folds: tuple[FoldConfig, ...]
    sources: tuple[LesionSource, ...]
    pretraining: RunConfig
    fine_tuning: RunConfig
    strategies: tuple[Strategy, ...] = ("continual", "body", "encoder", "hybrid")
    joint: tuple[str, ...] = ()
    fusion: Fusion = "selective"
    frozen_steps: int = 0
    rate_factor: float = 1.0
    told_apart: Target = "lesion"
    simulation: SimulationConfig | None = None
    refinement: tuple[RefinementConfig, ...] = ()
    grid: GridConfig = field(default_factory=GridConfig)
    network: UNetSpec = field(default_factory=UNetSpec)
    patches: PatchConfig = field(default_factory=PatchConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    tiles: TileConfig = field(default_factory=TileConfig)

    def __post_init__(self) -> None:
        """Refuse a fold with unknown cases and a joint training on an unknown source."""
        for fold in self.folds:
            unknown = sorted({*fold.train, *fold.curve} - set(self.target.cases))
            if unknown or set(fold.train) & set(fold.curve):
                raise SettingsError(
                    f"A fold trains on {', '.join(fold.train)} and draws its curve on {', '.join(fold.curve)}; two "
                    "separate choices of target.cases are expected."
                )
        missing = sorted(set(self.joint) - {source.name for source in self.sources})
        if missing:
            raise SettingsError(f"joint names {', '.join(missing)}, which is no source.")


def load_study(name_or_path: str | Path) -> StudyConfig:
    """Read a study.

    Args:
        name_or_path: Name of a shipped study or path of a TOML file.

    Raises:
        SettingsError: If there is no such study, or the file is not valid.
    """
    return build_from_dict(StudyConfig, read_toml(name_or_path, STUDIES_FOLDER, "study"), "the study")
