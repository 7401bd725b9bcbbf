"""What is exported: a checkpoint of a training, several folds as an ensemble, or an earlier bundle's network."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from onnx import numpy_helper

from covidseg_export.ensemble import FoldEnsemble
from covidseg_export.exportable import fold_batch_normalisations, tile_fit
from covidseg_export.provenance import describe_training
from covidseg_runtime.bundle import ModelBundle, PreprocessingSpec
from covidseg_runtime.errors import BundleError
from covidseg_runtime.tiling import TilePlan
from covidseg_runtime.volume import MODEL_ORIENTATION
from covidseg_train.checkpoint import load_network
from covidseg_train.datasets.catalog import DATASETS, get_dataset
from covidseg_train.fit import BEST, LAST
from covidseg_train.hybrid import HybridEncoderUNet, SelectiveFusion
from covidseg_train.study import MEASURES
from covidseg_train.unet import SegmentationNetwork, UNet3d, UNetSpec, count_parameters

CheckpointChoice = Literal["best", "last"]

CLASSES_BY_COUNT: Mapping[int, tuple[str, ...]] = {
    2: ("background", "infection"),
    3: ("background", "lung", "infection"),
}


@dataclass(frozen=True)
class SourceCases:
    """The cases of a training.

    Attributes:
        dataset: Name of the data set.
        root: Where its cases lie on this machine; None if nobody said.
        train: Those learned from.
        validation: Those that validated the training, none of them learned from.
        held_out: Those never read while training; cases that only drew a curve count where none is held out.
    """

    dataset: str
    root: Path | None
    train: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def untouched(self) -> tuple[str, ...]:
        """Cases held out that did not validate the training either."""
        return tuple(case for case in self.held_out if case not in self.validation)


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A network and what is known of it.

    Attributes:
        network: Torch, fp32, on the CPU.
        name: Name of the bundle.
        version: Version of the bundle.
        classes: What the network tells apart.
        preprocessing: How a scan becomes its input.
        tile_plan: Its tiles.
        training: The section ``training`` of bundle.json.
        licence: Of the weights.
        cases: Its data.
        decision: The section ``decision`` of bundle.json, see decision.py; empty if the bundle has none, None if nobody
            chose yet.
    """

    network: SegmentationNetwork
    name: str
    version: str
    classes: tuple[str, ...]
    preprocessing: PreprocessingSpec
    tile_plan: TilePlan
    training: Mapping[str, Any]
    licence: str
    cases: SourceCases
    decision: Mapping[str, Any] | None = None


def read_run(
    run_folder: Path, *, version: str, data_root: Path | None = None, which: CheckpointChoice | None = None
) -> ExportSource:
    """A checkpoint of a run.

    Args:
        run_folder: What `covidseg train` wrote, or the cell of a study.
        version: Of the bundle.
        data_root: Where its cases lie; None for where the run says.
        which: ``best`` on the validation cases, or ``last``; None for the one that was measured: the last of a study's
            cell, whose validation cases select nothing, else the best.

    Raises:
        BundleError: If the folder holds none.
    """
    which = which or ("last" if (run_folder / MEASURES).is_file() else "best")
    file = run_folder / {"best": BEST, "last": LAST}[which]
    if not file.is_file():
        raise BundleError(f"{run_folder} holds no {file.name}; give the folder of a finished `covidseg train`.")
    network, checkpoint = load_network(file)
    config = checkpoint.config
    dataset = get_dataset(config.data.dataset)
    return ExportSource(
        network=network,
        name=config.name,
        version=version,
        classes=CLASSES_BY_COUNT[config.network.classes],
        preprocessing=PreprocessingSpec(MODEL_ORIENTATION, config.grid.spacing_mm, config.grid.scaling),
        tile_plan=replace(config.tiles.plan(), fit=tile_fit(network)),
        training={**describe_training(checkpoint), "weights": which},
        licence=dataset.licence,
        cases=SourceCases(
            dataset=dataset.name,
            root=data_root or Path(config.data.root),
            train=config.data.train,
            validation=config.data.validation,
            held_out=config.data.test or config.data.validation,
        ),
    )


def read_ensemble(
    run_folders: Sequence[Path], *, version: str, data_root: Path | None = None, which: CheckpointChoice | None = None
) -> ExportSource:
    """Several folds as one network.

    No case counts as held out: what one fold did not see, another learned from.

    Raises:
        BundleError: If the folds do not share grid, window, tiles and classes.
    """
    folds = [read_run(folder, version=version, data_root=data_root, which=which) for folder in run_folders]
    first = folds[0]
    for fold in folds[1:]:
        if (fold.preprocessing, fold.tile_plan, fold.classes) != (first.preprocessing, first.tile_plan, first.classes):
            raise BundleError(f"{fold.name} and {first.name} differ in grid, window, tiles or classes: no ensemble.")
    learned = tuple(sorted({case for fold in folds for case in fold.cases.train}))
    picking = dict.fromkeys(case for fold in folds for case in fold.cases.validation)
    validation = tuple(case for case in picking if case not in learned)
    held_out = tuple(case for case in first.cases.held_out if case not in learned)
    cost = {key: round(sum(fold.training[key] for fold in folds), 1) for key in ("minutes", "cpu_seconds")}
    training = {**first.training, "train": list(learned), "test": list(held_out), "folds": len(folds), **cost}
    return replace(
        first,
        network=FoldEnsemble([fold.network for fold in folds]).eval(),
        name=f"{first.name}-ensemble-of-{len(folds)}",
        training=training,
        cases=replace(first.cases, train=learned, validation=validation, held_out=held_out),
    )


def read_bundle(bundle: ModelBundle, *, version: str, data_root: Path | None = None) -> ExportSource:
    """The network of a bundle, rebuilt in torch from its fp32 graph.

    Raises:
        BundleError: If the bundle does not describe its network well enough.
    """
    training = dict(bundle.card.get("training", {}))
    dataset = next((one.name for one in DATASETS.values() if one.title == training.get("dataset")), "")
    return ExportSource(
        network=load_bundle_network(bundle),
        name=bundle.name,
        version=version,
        classes=bundle.classes,
        preprocessing=bundle.preprocessing,
        tile_plan=bundle.tile_plan,
        training=training,
        licence=str(bundle.card.get("licence", "not stated")),
        cases=SourceCases(
            dataset=dataset,
            root=data_root,
            train=tuple(training.get("train", ())),
            validation=tuple(case for case in training.get("validation", ()) if case not in training.get("train", ())),
            held_out=tuple(training.get("test", ()) or training.get("validation", ())),
        ),
        decision=bundle.card.get("decision", {}),
    )


def load_bundle_network(bundle: ModelBundle) -> SegmentationNetwork:
    """Rebuild the torch network of a bundle: the tensors of its fp32 graph keep their names.

    Batch normalisations stay what they are in the graph, a part of their convolutions.

    Raises:
        BundleError: If network and graph do not fit.
    """
    card = bundle.card.get("network", {})
    network = _build(bundle, card)
    fold_batch_normalisations(network)
    graph = onnx.load(bundle.model_path("fp32"), load_external_data=False).graph
    # The exporter wraps the network; graphs of version 0.1 are not wrapped and call their one head `head`.
    found = {re.sub(r"^head\.", "heads.0.", one.name.removeprefix("network.")): one for one in graph.initializer}
    weights = {}
    for name, value in network.state_dict().items():
        if name not in found:
            raise BundleError(f"bundle {bundle.name!r} holds no tensor {name}: it cannot be rebuilt in torch.")
        weights[name] = torch.from_numpy(numpy_helper.to_array(found[name]).copy()).reshape(value.shape)
    network.load_state_dict(weights)
    return network.eval()


def _build(bundle: ModelBundle, card: Mapping[str, Any]) -> SegmentationNetwork:
    try:
        spec = UNetSpec(
            classes=len(bundle.classes),
            widths=tuple(card["widths"]),
            strides=tuple((z, y, x) for z, y, x in card["strides"]),
            supervised_levels=1,
            finest_kernel=tuple(card.get("finest_kernel", (3, 3, 3))),
            normalisation=card.get("normalisation", "instance"),
        )
        if card["architecture"] in ("UNet3d", "MultiTaskUNet"):  # the heads of other tasks are not exported
            return UNet3d(spec)
        if card["architecture"] == "HybridEncoderUNet":
            return HybridEncoderUNet(spec, card["fusion"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"bundle {bundle.name!r} does not describe its network ({error}).") from error
    raise BundleError(f"bundle {bundle.name!r} holds a {card['architecture']}, which cannot be rebuilt in torch.")


def describe_network(network: SegmentationNetwork, opset: int) -> dict[str, Any]:
    """The section ``network`` of bundle.json: enough to build the network again."""
    spec = network.spec
    description: dict[str, Any] = {
        "architecture": type(network).__name__,
        "parameters": count_parameters(network),
        "widths": list(spec.widths),
        "strides": [list(stride) for stride in spec.strides],
        "finest_kernel": list(spec.finest_kernel),
        "normalisation": spec.normalisation,
        "opset": opset,
    }
    if isinstance(network, HybridEncoderUNet):
        selective = isinstance(network.fusions[0], SelectiveFusion)
        description["fusion"] = "selective" if selective else "concatenation"
    if isinstance(network, FoldEnsemble):
        description["members"] = [describe_network(member, opset) for member in network.folds]
    return description
