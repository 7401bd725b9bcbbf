"""Comparing a label map with the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.bundle import LABELS
from covidseg_runtime.errors import SettingsError, VolumeError
from covidseg_runtime.metrics import (
    compute_surface_distances,
    dice,
    hausdorff_mm,
    normalised_surface_dice,
)
from covidseg_runtime.same_grid import on_grid_of
from covidseg_runtime.volume import Volume

TruthKind = Literal["auto", "labels", "infection"]

INFECTION = 3
# As in the benchmark of Ma et al.: the distance within which two borders count as the same.
TOLERANCE_MM: Mapping[int, float] = MappingProxyType({1: 1.0, 2: 1.0, INFECTION: 3.0})
_HAUSDORFF_PERCENTILE = 95.0


@dataclass(frozen=True)
class LabelAgreement:
    """How well one label of the prediction agrees with the truth.

    Attributes:
        label: The label's value.
        name: Its meaning.
        dice: Dice similarity coefficient (DSC); NaN where both are empty.
        surface_dice: Normalised surface Dice (NSD) at `tolerance_mm`.
        tolerance_mm: 1 mm for lungs, 3 mm for infection.
        hausdorff95_mm: 95th percentile of the Hausdorff distance.
        predicted_ml: Volume of the label in the prediction.
        true_ml: Volume of the label in the truth.
    """

    label: int
    name: str
    dice: float
    surface_dice: float
    tolerance_mm: float
    hausdorff95_mm: float
    predicted_ml: float
    true_ml: float


def compare_label_maps(
    prediction: Volume, truth: Volume, *, truth_kind: TruthKind = "auto"
) -> tuple[LabelAgreement, ...]:
    """Compare every label that the prediction or the truth holds.

    Args:
        prediction: covidseg's label map.
        truth: A label map of the same scan; its axes may be in another order.
        truth_kind: "labels" if the truth has covidseg's labels, "infection" if every non-zero
            voxel of it is infection (then only infection is compared). "auto" takes a truth that
            holds nothing above 1 for the latter.

    Raises:
        VolumeError: if the two do not lie on one grid, or the truth has unknown labels.
    """
    true_labels = align_truth(prediction, truth, truth_kind=truth_kind)
    predicted_labels = _known_labels(prediction.voxels, "the prediction")
    only_infection = resolve_truth_kind(truth, truth_kind) == "infection"
    compared = (INFECTION,) if only_infection else _present(predicted_labels, true_labels)
    return tuple(
        _compare(label, predicted_labels == label, true_labels == label, prediction.spacing_mm) for label in compared
    )


def dice_by_label(predicted_labels: NDArray[np.uint8], true_labels: NDArray[np.uint8]) -> dict[int, float]:
    """The Dice coefficient of every label of the truth, both of one shape.

    A truth of infection only, or without any label, is compared for infection alone. This is the
    cheap part of `compare_label_maps`: no surfaces.
    """
    labels = _present(true_labels, true_labels) or (INFECTION,)
    return {label: dice(predicted_labels == label, true_labels == label) for label in labels}


def align_truth(reference: Volume, truth: Volume, *, truth_kind: TruthKind = "auto") -> NDArray[np.uint8]:
    """The truth's labels on the grid of `reference`, (X, Y, Z) uint8, as covidseg's labels.

    An infection mask comes back with label 3 wherever it is not zero.

    Raises:
        VolumeError: if the two do not lie on one grid, or the truth has unknown labels.
    """
    voxels = on_grid_of(reference, truth, reference_name="prediction", name="truth")
    if resolve_truth_kind(truth, truth_kind) == "infection":
        return np.where(voxels != 0, np.uint8(INFECTION), np.uint8(0))
    return _known_labels(voxels, "the truth")


def resolve_truth_kind(truth: Volume, truth_kind: TruthKind) -> Literal["labels", "infection"]:
    """Decide what "auto" stands for.

    Raises:
        SettingsError: if `truth_kind` is unknown.
    """
    if truth_kind not in get_args(TruthKind):
        raise SettingsError(f"truth_kind is {truth_kind!r}: expected one of {get_args(TruthKind)}")
    if truth_kind == "auto":
        return "labels" if truth.voxels.size and truth.voxels.max() > 1 else "infection"
    return truth_kind


def _present(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[int, ...]:
    return tuple(label for label in LABELS if label and ((first == label).any() or (second == label).any()))


def _compare(
    label: int,
    predicted: NDArray[np.bool_],
    true: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
) -> LabelAgreement:
    tolerance_mm = TOLERANCE_MM[label]
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    distances = compute_surface_distances(predicted, true, spacing_mm)
    return LabelAgreement(
        label=label,
        name=LABELS[label],
        dice=dice(predicted, true),
        surface_dice=normalised_surface_dice(distances, tolerance_mm),
        tolerance_mm=tolerance_mm,
        hausdorff95_mm=hausdorff_mm(distances, _HAUSDORFF_PERCENTILE),
        predicted_ml=int(predicted.sum()) * voxel_ml,
        true_ml=int(true.sum()) * voxel_ml,
    )


def _known_labels(voxels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    unknown = sorted(set(np.unique(voxels).tolist()) - set(LABELS))
    if unknown:
        raise VolumeError(
            f"{name} has labels {unknown[:5]}; covidseg knows {dict(LABELS)}. For a truth in which "
            "every label is infection use --truth-kind infection"
        )
    return voxels.astype(np.uint8, copy=False)
