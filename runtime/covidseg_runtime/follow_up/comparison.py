"""A scan compared with an earlier one of the same patient: the steps in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import covidseg_runtime
from covidseg_runtime.errors import VolumeError
from covidseg_runtime.follow_up.changes import Change, LesionChanges, Totals
from covidseg_runtime.follow_up.coarse_chest import CoarseChest
from covidseg_runtime.follow_up.follow_up_checks import check_follow_up, judge_scan, tells_consolidation
from covidseg_runtime.follow_up.labelled_scan import LabelledScan
from covidseg_runtime.follow_up.lesion_matching import RULE, match_lesions
from covidseg_runtime.follow_up.registration import Registration, register
from covidseg_runtime.measures import Measures, measure
from covidseg_runtime.report import LIMITS, NOTICE, plain_json

__all__ = ["FOLLOW_UP_SCHEMA_VERSION", "FollowUp", "LabelledScan", "compare_scans"]

FOLLOW_UP_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FollowUp:
    """A scan compared with an earlier one.

    Attributes:
        prior: What is said of the prior: file, shape, spacing, acquisition date.
        current: The same of the current scan.
        days: Between the acquisitions; None where a date is unknown.
        totals: Volumes and percentages.
        lesions: Lesion by lesion.
        registration: How the prior was brought onto the current scan.
        warnings: Sentences that a reader has to know.
        rule: How lesions were matched, in a sentence.
    """

    prior: Mapping[str, Any]
    current: Mapping[str, Any]
    days: int | None
    totals: Totals
    lesions: LesionChanges
    registration: Registration
    warnings: tuple[str, ...]
    rule: str

    def describe(self) -> dict[str, Any]:
        """As JSON: it holds only what JSON knows, and null for numbers without meaning."""
        follow_up = {
            "schema_version": FOLLOW_UP_SCHEMA_VERSION,
            "notice": NOTICE,
            "limits": LIMITS,
            "software": {"name": "covidseg", "version": covidseg_runtime.__version__},
            "prior": self.prior,
            "current": self.current,
            "days": self.days,
            **self.totals.describe(),
            "lesions": self.lesions.describe(),
            "lesion_list": [lesion.describe() for lesion in self.lesions.listed],
            "registration": self.registration.describe(),
            "warnings": self.warnings,
            "rule": self.rule,
        }
        return {key: plain_json(item) for key, item in follow_up.items()}


def compare_scans(prior: LabelledScan, current: LabelledScan) -> FollowUp:
    """Compare a scan with an earlier one of the same patient (extra ``report``: SimpleITK).

    Volumes come from each label map on its own grid; registration only decides which lesion is which.

    Args:
        prior: The earlier scan.
        current: The later one.

    Raises:
        VolumeError: If one of them is no CT in HU or has no lungs, if the prior is the later one, or if the lungs
            cannot be laid over each other.
        ModuleNotFoundError: Without SimpleITK.

    Example:
        >>> prior = LabelledScan(volume, labels, "march.nii.gz")      # doctest: +SKIP
        >>> current = LabelledScan(later, later_labels, "may.nii.gz")  # doctest: +SKIP
        >>> compare_scans(prior, current).lesions.of("new")           # doctest: +SKIP
        ()
    """
    days = _days(prior, current)
    measures = _judged_measures(prior), _judged_measures(current)
    registration = register(CoarseChest.of(prior), CoarseChest.of(current))
    lesions = match_lesions(prior.turned_labels, current.turned_labels, registration.placement)
    totals = _totals((prior, current), measures)
    return FollowUp(
        prior=prior.describe(),
        current=current.describe(),
        days=days,
        totals=totals,
        lesions=lesions,
        registration=registration,
        warnings=check_follow_up((prior, current), measures, registration, lesions),
        rule=RULE,
    )


def _days(prior: LabelledScan, current: LabelledScan) -> int | None:
    if prior.acquisition_date is None or current.acquisition_date is None:
        return None
    days = (current.acquisition_date - prior.acquisition_date).days
    if days < 0:
        raise VolumeError(
            f"The prior {prior.name} was acquired on {prior.acquisition_date}, after {current.name} on "
            f"{current.acquisition_date}; give the earlier scan as the prior."
        )
    return days


def _judged_measures(scan: LabelledScan) -> Measures:
    judge_scan(scan)
    turned = scan.turned
    return measure(scan.turned_labels.voxels, turned.voxels, turned.spacing_mm)


def _totals(scans: tuple[LabelledScan, LabelledScan], measures: tuple[Measures, Measures]) -> Totals:
    prior, current = measures
    densities = all(tells_consolidation(scan) for scan in scans)
    return Totals(
        infection_ml=Change(prior.infection_volume_ml.whole, current.infection_volume_ml.whole),
        infection_percent=Change(prior.infection_percent.whole, current.infection_percent.whole),
        ground_glass_ml=Change(prior.ground_glass_ml, current.ground_glass_ml) if densities else Change(None, None),
        consolidation_ml=Change(prior.consolidation_ml, current.consolidation_ml) if densities else Change(None, None),
        lung_ml=Change(prior.lung_volume_ml.whole, current.lung_volume_ml.whole),
    )
