"""What is known of a network beyond its own held-out cases: other folds of its recipe, and another data set.

A network that learned from all patients but one has nobody left to be measured on. What its recipe is worth is told by
networks trained alike without some of them; what it is worth elsewhere, by a data set that it never met.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covidseg_export.held_out import measure_held_out
from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.errors import BundleError
from covidseg_runtime.segmenter import Segmenter
from covidseg_train.datasets.dataset import Dataset

# What makes two trainings folds of one recipe, beside how many trainings each goes on from. Not after how many steps
# validation was best, which differs from fold to fold.
RECIPE = ("dataset", "strategy", "seed", "batch_size", "patch_shape", "optimiser", "weights")

# A case with less infection is shown and not averaged: a few voxels make its DSC 0 or 1.
SMALLEST_REFERENCE_ML = 1.0


@dataclass(frozen=True)
class ExternalSet:
    """A data set on which a network is measured and from which it learned nothing.

    Attributes:
        dataset: The data set.
        root: Folder of its cases.
    """

    dataset: Dataset
    root: Path


@dataclass(frozen=True)
class Evidence:
    """Where more is to be learned of a network.

    Attributes:
        folds: Bundles of the same recipe, each trained without other patients.
        external: Another data set; None: no other.
        against: Bundles whose results on the same cases are set beside those on the other data set.
    """

    folds: tuple[ModelBundle, ...] = ()
    external: ExternalSet | None = None
    against: tuple[ModelBundle, ...] = ()


def measure_evidence(evidence: Evidence, training: Mapping[str, Any], segmenter: Segmenter) -> dict[str, Any]:
    """Sections ``cross_validation`` and ``external`` of ``metrics`` in bundle.json, where there are such.

    Args:
        evidence: Where to look.
        training: The section ``training`` of the network.
        segmenter: The exported network.

    Raises:
        BundleError: If a fold has another recipe or no result, or the network learned from a case of the other set.
        VolumeError: If a case of the other set cannot be read.
    """
    sections: dict[str, Any] = {}
    if evidence.folds:
        sections["cross_validation"] = [row for fold in evidence.folds for row in _rows_of_fold(fold, training)]
    if evidence.external is not None:
        sections["external"] = _measure_external(evidence.external, training, segmenter, evidence.against)
    return sections


def held_out_rows(bundle: ModelBundle) -> list[Mapping[str, Any]]:
    """Results of a bundle on cases that neither taught it nor validated its training."""
    picked = bundle.card.get("training", {}).get("validation", ())
    return [row for row in bundle.card.get("metrics", {}).get("held_out", ()) if row["case"] not in picked]


def _rows_of_fold(fold: ModelBundle, training: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    theirs, rows = fold.card.get("training", {}), held_out_rows(fold)
    other = [key for key in RECIPE if theirs.get(key) != training.get(key)]
    if len(theirs.get("pretraining", ())) != len(training.get("pretraining", ())):
        other.append("pretraining")
    if other or not rows:
        why = f"differs in {', '.join(other)}" if other else "held no case out"
        raise BundleError(f"Bundle {fold.name} {why}; give folds of the same study, exported from its cells.")
    return ({**row, "fold": f"{fold.name} {fold.version}"} for row in rows)


def _measure_external(
    external: ExternalSet, training: Mapping[str, Any], segmenter: Segmenter, against: Sequence[ModelBundle]
) -> dict[str, Any]:
    dataset = external.dataset
    cases = [case.name for case in dataset.find_cases(external.root)]
    sets = [one for each in (training, *training.get("pretraining", ())) for one in (each, *each.get("sources", ()))]
    met = {case for one in sets for case in (*one.get("train", ()), *one.get("validation", ()))} & set(cases)
    if met or any(one.get("dataset") == dataset.title and one.get("train") == ["*"] for one in sets):
        raise BundleError(
            f"The network learned from {dataset.name} ({', '.join(sorted(met)) or 'every case'}); a data set that it "
            "never met is expected."
        )
    results = [one.to_dict() for one in measure_held_out(segmenter, dataset, external.root, cases)]
    section = {"dataset": dataset.title, "limits": dataset.limits, "results": results}
    beside = {row["case"]: {**row, "bundle": f"{one.name} {one.version}"} for one in against for row in _all_rows(one)}
    shared = [beside[one] for one in cases if one in beside]
    return {**section, "against": shared} if shared else section


def _all_rows(bundle: ModelBundle) -> list[Mapping[str, Any]]:
    return [*bundle.card.get("metrics", {}).get("cross_validation", ()), *held_out_rows(bundle)]


def averaged(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The results that count in a mean."""
    return [row for row in results if row["reference_ml"] >= SMALLEST_REFERENCE_ML]


def median_volume_error(results: Sequence[Mapping[str, Any]]) -> float:
    """Median of |predicted / reference − 1|; the references are not empty."""
    return float(np.median([abs(row["predicted_ml"] / row["reference_ml"] - 1) for row in results]))
