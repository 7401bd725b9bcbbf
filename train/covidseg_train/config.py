"""One experiment as frozen values, read from a TOML file.

Sections of the file are the dataclasses below; keys are their fields. An unknown section or key is refused by name.
Shipped experiments lie in ``configs/`` and are known by their file name (``quick``, ``default``).
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from covidseg_runtime.errors import SettingsError
from covidseg_runtime.intensity import HounsfieldScaling
from covidseg_runtime.tiling import Average, TilePlan
from covidseg_train.datasets.catalog import get_dataset
from covidseg_train.hybrid import Fusion
from covidseg_train.toml_files import build_from_dict, read_toml
from covidseg_train.unet import UNetSpec

CONFIGS_FOLDER = Path(__file__).parent / "configs"

Strategy = Literal["scratch", "continual", "body", "encoder", "hybrid"]
# What the network tells apart, background first. Left and right lung look alike in most patches, so they are one
# class here and the runtime parts them by their place in the chest.
Target = Literal["lung_and_lesion", "lesion"]
CLASSES_OF_TARGET = {"lung_and_lesion": 3, "lesion": 2}
ALL_CASES = ("*",)


@dataclass(frozen=True)
class SourceConfig:
    """A further data set that is trained on at the same time.

    Attributes:
        dataset: Name of a data set, as ``covidseg data list`` shows it.
        root: Folder of its cases.
        train: Case names; ``["*"]`` means all.
        task: A name of its own gives the set heads of its own (multi-task); the task of ``data`` shares the heads
            (joint training, all lesions one class).
        weight: How often its cases are drawn, relative to the other sets of the same task.
    """

    dataset: str
    root: str
    train: tuple[str, ...] = ALL_CASES
    task: str = "lesion"
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an unknown data set and a weight that is not positive."""
        get_dataset(self.dataset)
        if self.weight <= 0:
            raise SettingsError(f"the weight of {self.dataset} is {self.weight}; a positive number is expected.")


@dataclass(frozen=True)
class DataConfig:
    """Which cases take which part; one patient is in one list only.

    Attributes:
        dataset: Name of a data set, as ``covidseg data list`` shows it.
        root: Folder of the cases; ``--data`` and COVIDSEG_DATA take precedence.
        train: Case names learned from; ``["*"]`` means all.
        validation: Case names that pick the best checkpoint. Empty: the last checkpoint is the best.
        test: Case names held out; never read while training.
        cache: Folder of preprocessed cases.
        target: What is told apart: background, lung and lesion, or background and lesion.
        task: Name of the heads.
        weight: As of a source.
        sources: Further data sets that are trained on at the same time.
    """

    dataset: str
    root: str
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    cache: str = "runs/cache"
    target: Target = "lung_and_lesion"
    task: str = "lesion"
    weight: float = 1.0
    sources: tuple[SourceConfig, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an unknown data set, an empty training set and a case in two parts."""
        get_dataset(self.dataset)
        if not self.train:
            raise SettingsError("data.train is empty; name at least one case to learn from.")
        parts = (*self.train, *self.validation, *self.test)
        twice = sorted({case for case in parts if parts.count(case) > 1})
        if twice:
            raise SettingsError(f"data names {', '.join(twice)} more than once; a case belongs to one part only.")

    def training_sets(self) -> tuple[SourceConfig, ...]:
        """Every set that is trained on, the own one first."""
        return (SourceConfig(self.dataset, self.root, self.train, self.task, self.weight), *self.sources)

    def tasks(self) -> tuple[str, ...]:
        """The tasks in order, each once; the first is the one validated and exported."""
        return tuple(dict.fromkeys(source.task for source in self.training_sets()))


@dataclass(frozen=True)
class GridConfig:
    """The grid and intensities the network sees; they travel in the bundle.

    Attributes:
        spacing_mm: Voxel spacing (z, y, x) of the model grid.
        scaling: Window and scaling of Hounsfield units.
    """

    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 1.5)
    scaling: HounsfieldScaling = field(default_factory=lambda: HounsfieldScaling(-1000.0, 400.0, -500.0, 400.0))


@dataclass(frozen=True)
class PatchConfig:
    """How training patches are drawn.

    Attributes:
        shape: Patch (z, y, x) in voxels.
        batch_size: Patches a step.
        infection_fraction: Share of patches centred on an infected voxel.
        lung_fraction: Share of patches centred on a voxel of the lungs; the rest lies anywhere.
    """

    shape: tuple[int, int, int] = (80, 80, 80)
    batch_size: int = 2
    infection_fraction: float = 0.5
    lung_fraction: float = 0.4

    def __post_init__(self) -> None:
        """Refuse shares outside [0, 1]."""
        shares = (self.infection_fraction, self.lung_fraction)
        if min(shares) < 0 or sum(shares) > 1:
            raise SettingsError(
                f"patches.infection_fraction {shares[0]} and patches.lung_fraction {shares[1]} must be "
                "non-negative and sum to 1 at most."
            )


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of a training patch; probabilities 0 switch a change off.

    Attributes:
        mirror_probability: Mirroring, drawn for each of ``mirror_axes``.
        mirror_axes: Of z, y, x; x is left–right.
        affine_probability: Rotation and scaling.
        rotation_degrees: Largest rotation about each axis; a flat patch is turned in its plane only, by any angle.
        scale_range: Largest relative zoom (0.25 means 0.75 to 1.25).
        noise_probability: Gaussian noise of up to 0.1 scaled units.
        blur_probability: Gaussian blur, sigma 0.5 to 1 voxel.
        contrast_probability: Brightness and contrast by a factor of 0.75 to 1.25, and gamma 0.7 to 1.5; each alone.
        inverted_gamma_probability: Gamma 0.7 to 1.5 of the inverted image.
        low_resolution_probability: Down- and up-sampling by a factor of 0.5 to 1.
        thick_slices_probability: Means over 1 to 3.5 slices, interpolated back, as of a scan with thick slices.
        opaque_mass_probability: A simulated mass of soft tissue in the lung (opaque_masses.py); needs lung told apart.
    """

    mirror_probability: float = 0.5
    mirror_axes: tuple[Literal["z", "y", "x"], ...] = ("x",)
    affine_probability: float = 0.4
    rotation_degrees: float = 20.0
    scale_range: float = 0.25
    noise_probability: float = 0.15
    blur_probability: float = 0.15
    contrast_probability: float = 0.2
    inverted_gamma_probability: float = 0.0
    low_resolution_probability: float = 0.2
    thick_slices_probability: float = 0.0
    opaque_mass_probability: float = 0.0


@dataclass(frozen=True)
class OptimiserConfig:
    """The optimiser and its schedule.

    Attributes:
        name: ``sgd`` is nnU-Net's (Nesterov, momentum 0.99); ``adamw`` learns faster in a short training.
        learning_rate: At the end of the warm-up.
        weight_decay: L2 (sgd) or decoupled (adamw).
        warmup_steps: Steps of linear warm-up.
        clip_norm: Largest norm of the gradient.
        ema_decay: Decay of the moving average of the weights that is validated and exported; 0 switches it off.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    weight_decay: float = 3e-5
    warmup_steps: int = 0
    clip_norm: float = 12.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.learning_rate <= 0:
            raise SettingsError(f"optimiser.learning_rate is {self.learning_rate}; a positive number is expected.")
        if not 0 <= self.ema_decay < 1:
            raise SettingsError(f"optimiser.ema_decay is {self.ema_decay}; 0 to below 1 is expected.")


@dataclass(frozen=True)
class TransferConfig:
    """How weights come in from another training.

    Attributes:
        strategy: ``scratch`` none; ``continual`` everything; ``body`` encoder and decoder, new heads; ``encoder`` the
            encoder; ``hybrid`` the encoder beside a new one, both fused for a new decoder.
        checkpoint: Checkpoint of the other training; ``scratch`` has none.
        fusion: Of ``hybrid``: ``selective``, or ``concatenation`` as the ablation.
        frozen_steps: The transferred parts stand still for so many first steps; −1 means always.
        rate_factor: Learning rate of the transferred parts, relative to that of the new ones.
    """

    strategy: Strategy = "scratch"
    checkpoint: str = ""
    fusion: Fusion = "selective"
    frozen_steps: int = 0
    rate_factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a strategy without its checkpoint and the reverse."""
        if (self.strategy == "scratch") != (self.checkpoint == ""):
            raise SettingsError(
                f"transfer.strategy is {self.strategy!r} and transfer.checkpoint {self.checkpoint!r}; scratch has no "
                "checkpoint, every other strategy needs one."
            )
        if self.frozen_steps < -1 or self.rate_factor <= 0:
            raise SettingsError(
                f"transfer.frozen_steps is {self.frozen_steps} and transfer.rate_factor {self.rate_factor}; "
                "-1 or more and a positive number are expected."
            )


@dataclass(frozen=True)
class RunConfig:
    """Length, seed and rhythm of the training.

    Attributes:
        seed: Weights, patches and augmentation all follow from it.
        epochs: Epochs of ``steps_per_epoch`` steps.
        steps_per_epoch: Optimiser steps an epoch.
        validate_every: Epochs between two validations; the last epoch is always validated.
        still_statistics_after: Share of the steps after which batch normalisations keep their running statistics:
            from there on the network learns with what it will have at inference. 1 means never.
        precision: ``bf16`` uses bfloat16 autocast where the device has it; ``auto`` decides.
        compilation: ``compile`` runs torch.compile, ``cuda_graphs`` with CUDA graphs as well.
    """

    seed: int = 0
    epochs: int = 10
    steps_per_epoch: int = 100
    validate_every: int = 5
    still_statistics_after: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compilation: Literal["off", "compile", "cuda_graphs"] = "off"

    def __post_init__(self) -> None:
        """Refuse a training without steps."""
        if min(self.epochs, self.steps_per_epoch, self.validate_every) < 1:
            raise SettingsError("run.epochs, run.steps_per_epoch and run.validate_every must be at least 1.")
        if not 0 <= self.still_statistics_after <= 1:
            raise SettingsError(f"run.still_statistics_after is {self.still_statistics_after}; 0 to 1 is expected.")

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class TileConfig:
    """Tiles of the exported model and of validation.

    Attributes:
        shape: Tile (z, y, x) in voxels; fixed in the exported graph.
        step: Distance of neighbouring tiles as a share of the tile.
        importance_sigma: As of a bundle's tile plan.
        average: Likewise.
    """

    shape: tuple[int, int, int] = (96, 96, 96)
    step: float = 0.75
    importance_sigma: float = 0.125
    average: Average = "logits"

    def plan(self) -> TilePlan:
        """As the runtime takes it."""
        return TilePlan(self.shape, self.step, self.importance_sigma, self.average)


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides a training.

    Raises:
        SettingsError: If patch or tile do not fit the strides of the network.
    """

    name: str
    data: DataConfig
    grid: GridConfig = field(default_factory=GridConfig)
    network: UNetSpec = field(default_factory=UNetSpec)
    patches: PatchConfig = field(default_factory=PatchConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    tiles: TileConfig = field(default_factory=TileConfig)

    def __post_init__(self) -> None:
        """Refuse shapes the network cannot halve evenly, and classes that are not those of the target."""
        classes = CLASSES_OF_TARGET[self.data.target]
        if self.network.classes != classes:
            raise SettingsError(
                f"network.classes is {self.network.classes}; data.target {self.data.target!r} has {classes} with the "
                "background."
            )
        if self.augmentation.opaque_mass_probability > 0 and self.data.target != "lung_and_lesion":
            raise SettingsError(
                f"augmentation.opaque_mass_probability is {self.augmentation.opaque_mass_probability} and data.target "
                f"{self.data.target!r}; lung_and_lesion is expected: a mass teaches where the lung is."
            )
        for name, shape in (("patches.shape", self.patches.shape), ("tiles.shape", self.tiles.shape)):
            if any(n % d for n, d in zip(shape, self.network.divisor(), strict=True)):
                raise SettingsError(
                    f"{name} is {shape}; each number must be a multiple of {self.network.divisor()}, "
                    "the network's total stride."
                )

    def to_dict(self) -> dict[str, Any]:
        """The experiment as plain dicts, lists and numbers, as ``config_from_dict`` reads it."""
        plain: dict[str, Any] = _listed(dataclasses.asdict(self))
        return plain


def load_config(name_or_path: str | Path, *, data_root: Path | None = None) -> ExperimentConfig:
    """Read an experiment.

    Args:
        name_or_path: Name of a shipped experiment or path of a TOML file.
        data_root: Replaces ``data.root``.

    Raises:
        SettingsError: If there is no such experiment, or the file is not valid.
    """
    values = read_toml(name_or_path, CONFIGS_FOLDER, "experiment")
    if data_root is not None and isinstance(values.get("data"), dict):
        values["data"]["root"] = str(data_root)
    return config_from_dict(values)


def config_from_dict(values: dict[str, Any]) -> ExperimentConfig:
    """Build an experiment from plain values.

    Raises:
        SettingsError: If a section or key is unknown, missing or of the wrong kind.
    """
    return build_from_dict(ExperimentConfig, _from_version_1(values), "the experiment")


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    """Experiments of version 0.1 named the strategy, which could only be scratch, in the section ``run``."""
    run = values.get("run")
    if not isinstance(run, dict) or run.get("strategy") != "scratch":
        return values
    return {**values, "run": {key: value for key, value in run.items() if key != "strategy"}}


def _listed(value: Any) -> Any:  # noqa: ANN401  (any plain value)
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value
