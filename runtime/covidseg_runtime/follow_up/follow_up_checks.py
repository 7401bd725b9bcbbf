"""Pairs of scans of which a number means little or nothing: what is refused, and what a reader is warned of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.follow_up.changes import LesionChanges
from covidseg_runtime.follow_up.labelled_scan import LabelledScan
from covidseg_runtime.follow_up.registration import Registration
from covidseg_runtime.measures import CONSOLIDATION_FROM_HU, LEFT_LUNG, RIGHT_LUNG, Measures
from covidseg_runtime.scan_checks import check_lungs, warn_of_window
from covidseg_runtime.spooling import planes
from covidseg_runtime.volume_files import judge_hounsfield

Pair = tuple[LabelledScan, LabelledScan]

# All 56 ordered pairs of eight different patients had 0.91 and less; one patient in two simulated breath-holds, the
# lungs up to 14 % larger or smaller, 0.975 and more (benchmarks/results/follow_up.json).
LEAST_LUNG_DICE = 0.93
# The different patients had 0.83 and more: below, what lies over each other is not lungs.
LEAST_DICE_OF_CHESTS = 0.7
LARGEST_LUNG_CHANGE = 0.15
LEAST_SHARE_SEEN = 0.97
# Three scans of 1 and 1.5 mm, resampled to 5 mm, had 3 to 18 % more infection by the networks of 0.5.0 and 0.7.0.
LARGEST_SLICE_RATIO = 1.5
SMALLEST_LUNGS_ML = 100.0


def judge_scan(scan: LabelledScan) -> None:
    """Refuse a scan that cannot be compared.

    Raises:
        VolumeError: If its values are no HU, such as grey levels of a window, or its labels hold no lungs.
    """
    judge_hounsfield(scan.volume, scan.name)
    labels = scan.turned_labels
    voxels = sum(int(np.count_nonzero((plane == LEFT_LUNG) | (plane == RIGHT_LUNG))) for plane in planes(labels.voxels))
    lungs_ml = voxels * float(np.prod(labels.spacing_mm)) / 1000.0
    if lungs_ml < SMALLEST_LUNGS_ML:
        raise VolumeError(
            f"The labels of {scan.name} hold {lungs_ml:.0f} mL of lung (1 left, 2 right), by which scans are brought "
            f"together; {SMALLEST_LUNGS_ML:.0f} mL and more are expected: give a chest CT segmented by a model that "
            "labels lungs."
        )


def tells_consolidation(scan: LabelledScan) -> bool:
    """Whether ground glass and consolidation can be told apart: true HU, or a window with -300 HU inside."""
    window = scan.volume.window_hu
    return window is None or window[0] < CONSOLIDATION_FROM_HU < window[1]


def check_follow_up(
    scans: Pair, measures: tuple[Measures, Measures], registration: Registration, lesions: LesionChanges
) -> tuple[str, ...]:
    """What a reader of the comparison has to know.

    Args:
        scans: Prior and current scan.
        measures: Of both.
        registration: Of the prior onto the current scan.
        lesions: As they were matched.

    Raises:
        VolumeError: If the lungs hardly lie over each other.
    """
    return (
        *_judge_dice(registration),
        *_warn_of_same_scan(scans),
        *_warn_of_lung_volume(measures),
        *_warn_of_view(registration, lesions),
        *_warn_of_slices(scans),
        *_warn_of_models(scans),
        *_warn_of_uncertainty(scans),
        *_warn_of_densities(scans),
        *_warn_of_each("Prior", scans[0], measures[0]),
        *_warn_of_each("Current", scans[1], measures[1]),
    )


def _judge_dice(registration: Registration) -> Iterator[str]:
    dice = registration.lung_dice
    if not dice >= LEAST_DICE_OF_CHESTS:
        raise VolumeError(
            f"After registration the lungs of the two scans hardly lie over each other (Dice {dice:.2f}, the lungs of "
            f"two patients have {LEAST_DICE_OF_CHESTS:g} and more): give two chest CTs of one patient."
        )
    if dice < LEAST_LUNG_DICE:
        yield (
            f"The lungs of the two scans do not match well (Dice {dice:.3f} after registration, one patient has "
            f"{LEAST_LUNG_DICE:g} and more): are both of one patient? New, resolved and persistent lesions are "
            "unreliable."
        )


def _warn_of_same_scan(scans: Pair) -> Iterator[str]:
    prior, current = (scan.volume for scan in scans)
    same_grid = prior.shape == current.shape and np.allclose(prior.affine, current.affine)
    if same_grid and all(
        np.array_equal(a, b) for a, b in zip(planes(prior.voxels.T), planes(current.voxels.T), strict=True)
    ):
        yield "The prior and the current scan are the same CT: nothing can have changed."


def _warn_of_lung_volume(measures: tuple[Measures, Measures]) -> Iterator[str]:
    prior, current = (of_scan.lung_volume_ml.whole or 0.0 for of_scan in measures)
    change = current / prior - 1.0
    if abs(change) > LARGEST_LUNG_CHANGE:
        yield (
            f"The lungs have {current:.0f} mL, in the prior {prior:.0f} mL ({change:+.0%}): another breath-hold or "
            "field of view; infection in mL and in percent of the lung change with it."
        )


def _warn_of_view(registration: Registration, lesions: LesionChanges) -> Iterator[str]:
    for share, whose, other in (
        (registration.share_in_prior, "current lungs", "prior"),
        (registration.share_in_current, "prior's lungs", "current scan"),
    ):
        if share < LEAST_SHARE_SEEN:
            yield (
                f"{1 - share:.0%} of the {whose} lie outside the field of view of the {other}: the totals are of "
                "different parts of the lungs; lesions there are called neither new nor resolved."
            )
    if lesions.reaching_outside:
        yield (
            f"{lesions.reaching_outside} persistent lesions reach beyond the other scan's field of view: their change "
            "in mL is partly one of what was seen."
        )


def _warn_of_slices(scans: Pair) -> Iterator[str]:
    prior_mm, current_mm = (scan.turned.spacing_mm[0] for scan in scans)
    if max(prior_mm, current_mm) > LARGEST_SLICE_RATIO * min(prior_mm, current_mm):
        yield (
            f"Slices are {current_mm:g} mm apart, in the prior {prior_mm:g} mm: a network finds other volumes in other "
            "slices of the same lungs, and small lesions are lost in thick ones; compare series of like slices."
        )


def _warn_of_models(scans: Pair) -> Iterator[str]:
    models = [None if scan.report is None else scan.report.get("model") for scan in scans]
    if None not in models and models[0] != models[1]:
        prior, current = (f"{model.get('name')} {model.get('version')}" for model in models if model is not None)
        yield (
            f"The prior was segmented by the model {prior}, the current scan by {current}, or by other files of it: "
            "what differs may be the models' doing; segment both with one model."
        )


def _warn_of_uncertainty(scans: Pair) -> Iterator[str]:
    ranges = [_range(scan) for scan in scans]
    if ranges[0] is None or ranges[1] is None:
        return
    (low, high), (current_low, current_high) = ranges[0], ranges[1]
    if max(low, current_low) <= min(high, current_high) and max(high, current_high) > 0:  # of nothing there is none
        yield (
            f"The uncertainty of the infection's volume is larger than its change: {low:.0f} to {high:.0f} mL in the "
            f"prior, {current_low:.0f} to {current_high:.0f} mL in the current scan."
        )


def _range(scan: LabelledScan) -> tuple[float, float] | None:
    """Ends in mL, as the scan's report has them."""
    found: Any = ((scan.report or {}).get("uncertainty") or {}).get("infection_volume_ml")
    return None if found is None else (float(found["low_ml"]), float(found["high_ml"]))


def _warn_of_densities(scans: Pair) -> Iterator[str]:
    for scan in scans:
        if not tells_consolidation(scan):
            low, high = scan.volume.window_hu or (0.0, 0.0)
            yield (
                f"The window of {scan.name} ({low:g} to {high:g} HU) does not part ground glass from consolidation "
                f"at {CONSOLIDATION_FROM_HU} HU: both are unknown."
            )


def _warn_of_each(which: str, scan: LabelledScan, measures: Measures) -> Iterator[str]:
    """What is to be said of one scan alone: as its report has it, else found again."""
    if scan.report is not None and "warnings" in scan.report:
        found = tuple(scan.report["warnings"])
    else:
        turned = scan.turned
        lungs = check_lungs(scan.turned_labels.voxels, turned.voxels, turned.spacing_mm, measures)
        found = (*warn_of_window(scan.volume.window_hu), *lungs)
    for sentence in found:
        yield f"{which}: {sentence}"
