"""A scan compared with an earlier one: real scans, and simulated changes whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from follow_up_pairs import Move, demo_scan, in_orientation, lidc_crop, moved, simulated_pair

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.follow_up.comparison import FollowUp, compare_scans
from covidseg_runtime.follow_up.labelled_scan import LabelledScan
from covidseg_runtime.follow_up.lesion_matching import RULE
from covidseg_runtime.follow_up.registration import METHOD
from covidseg_runtime.measures import measure
from covidseg_runtime.volume import Volume
from covidseg_train.simulated_lesions import SimulationSettings

# Simulated: eight lesions in 22 slices.
FEW = SimulationSettings(
    lesion_count=(8, 8), total_ml=(80.0, 80.0), peripheral_mm=60.0, basal=0.0, posterior=0.0, bilateral_probability=1.0
)


@pytest.fixture(scope="module")
def demo() -> LabelledScan:
    return demo_scan()


@pytest.fixture(scope="module")
def crop() -> LabelledScan:
    return lidc_crop()


def nothing_new_or_resolved(follow_up: FollowUp) -> bool:
    return not follow_up.lesions.of("new") and not follow_up.lesions.of("resolved")


def test_a_scan_has_not_changed_against_itself(demo):
    follow_up = compare_scans(demo, demo)
    told = follow_up.describe()
    for key in ("infection_ml", "infection_percent", "ground_glass_ml", "consolidation_ml", "lung_ml"):
        assert told[key]["delta"] == 0
        assert told[key]["prior"] == told[key]["current"] > 0
    assert nothing_new_or_resolved(follow_up)
    assert all(one.delta_ml == 0 and one.prior_lesions == one.current_lesions == 1 for one in follow_up.lesions.listed)
    assert len(follow_up.lesions.listed) == told["lesions"]["persistent"]["count"] > 10
    assert told["lesions"]["small"] == told["lesions"]["outside_view"] == dict.fromkeys(told["lesions"]["small"], 0)
    assert told["registration"]["lung_dice"] == 1
    assert "The prior and the current scan are the same CT: nothing can have changed." in told["warnings"]


def test_what_is_told_has_the_form_that_was_agreed(demo):
    prior = replace(demo, name="march.nii.gz", acquisition_date=date(2020, 3, 2))
    told = compare_scans(prior, replace(demo, acquisition_date=date(2020, 4, 1))).describe()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["schema_version"] == 1
    assert told["days"] == 30
    assert told["prior"]["file"] == "march.nii.gz"
    assert told["prior"]["acquisition_date"] == "2020-03-02"
    assert set(told["infection_ml"]) == {"prior", "current", "delta", "delta_percent"}
    assert set(told["infection_percent"]) == {"prior", "current", "delta"}
    assert {"new", "resolved", "persistent", "outside_view", "small"} == set(told["lesions"])
    assert {"change", "prior_ml", "current_ml", "delta_ml", "center_mm"} < set(told["lesion_list"][0])
    assert told["registration"]["method"] == METHOD
    assert told["rule"] == RULE


@pytest.mark.parametrize(
    ("move", "spacing_mm", "orientation"),
    [
        (Move(shift_mm=(6.0, 4.0, -7.0)), (3.0, 2.72, 2.72), "SPL"),
        (Move(shift_mm=(0.0, 0.0, 10.0)), (5.0, 2.72, 2.72), "RAS"),
        (Move(scale=1.05), (3.0, 2.72, 2.72), "PIR"),
    ],
    ids=["shifted 10 mm", "5 mm slices, other axes", "5 % larger"],
)
def test_another_grid_makes_no_lesion_new_or_resolved(demo, move, spacing_mm, orientation):
    current = in_orientation(moved(demo, move, spacing_mm), orientation)
    follow_up = compare_scans(demo, current)
    assert nothing_new_or_resolved(follow_up)
    assert follow_up.registration.lung_dice > 0.95
    totals = follow_up.totals.infection_ml
    # Patchy infection loses its thinnest parts to voxels of 5 mm.
    assert totals.current == pytest.approx(move.scale**3 * totals.prior, rel=0.1)


@pytest.mark.parametrize("seed", [1, 2])
def test_simulated_changes_are_found(crop, seed):
    """Simulated lesions that come, go, grow and shrink; the patient lies otherwise, in slices of 3 mm."""
    pair = simulated_pair(crop, seed, FEW)
    current = moved(pair.current, Move((4.0, -6.0, 0.0), (0.0, 0.0, 3.0)), (3.0, 1.2, 1.2))
    follow_up = compare_scans(pair.prior, current)
    lesions, truth = follow_up.describe()["lesions"], pair.truth
    assert min(truth.counts[fate] for fate in ("new", "resolved")) > 0
    _, _, new_ml = truth.of_kind("new")
    _, resolved_ml, _ = truth.of_kind("resolved")
    _, before_ml, after_ml = truth.of_kind("persistent")
    assert lesions["new"]["current_ml"] == pytest.approx(new_ml, rel=0.1)
    assert lesions["resolved"]["prior_ml"] == pytest.approx(resolved_ml, rel=0.1)
    assert lesions["persistent"]["prior_ml"] == pytest.approx(before_ml, rel=0.1)
    assert lesions["persistent"]["current_ml"] == pytest.approx(after_ml, rel=0.1)


def test_totals_are_those_of_each_scan_alone(demo):
    other = moved(demo, Move(shift_mm=(3.0, 0.0, 0.0)), (5.0, 3.5, 3.5))
    totals = compare_scans(demo, other).totals
    for which, scan in (("prior", demo), ("current", other)):
        turned = scan.turned
        alone = measure(scan.turned_labels.voxels, turned.voxels, turned.spacing_mm)
        assert getattr(totals.infection_ml, which) == alone.infection_volume_ml.whole
        assert getattr(totals.infection_percent, which) == alone.infection_percent.whole
        assert getattr(totals.lung_ml, which) == alone.lung_volume_ml.whole
        assert getattr(totals.consolidation_ml, which) == alone.consolidation_ml


def test_nothing_infected_in_either_scan(crop):
    told = compare_scans(crop, crop).describe()
    assert told["infection_ml"] == {"prior": 0, "current": 0, "delta": 0, "delta_percent": None}
    assert told["lesion_list"] == []


def test_days_are_unknown_without_dates(crop):
    assert compare_scans(crop, replace(crop, acquisition_date=date(2020, 4, 1))).days is None


def test_a_prior_from_later_is_refused(crop):
    prior = replace(crop, name="a.nii.gz", acquisition_date=date(2020, 4, 2))
    with pytest.raises(
        VolumeError, match=r"a\.nii\.gz was acquired on 2020-04-02, after .* on 2020-04-01; give the ear"
    ):
        compare_scans(prior, replace(crop, acquisition_date=date(2020, 4, 1)))


def test_grey_levels_are_refused(crop):
    levels = np.clip((crop.volume.voxels + 1250) / 1500 * 255, 0, 255).astype(np.int16)
    windowed = replace(crop, volume=Volume(levels, crop.volume.affine), name="window.nii.gz")
    with pytest.raises(VolumeError, match=r"window\.nii\.gz holds values from 38 to 255.*--window"):
        compare_scans(crop, windowed)


def test_a_label_map_without_lungs_is_refused(demo):
    infection = replace(demo, labels=np.where(demo.labels == 3, demo.labels, np.uint8(0)), name="mask.nii.gz")
    with pytest.raises(VolumeError, match=r"The labels of mask\.nii\.gz hold 0 mL of lung"):
        compare_scans(demo, infection)


def test_labels_of_another_scan_are_refused(demo, crop):
    with pytest.raises(VolumeError, match="have shape .*, its CT has .*; give the label map of this scan"):
        replace(demo, labels=crop.labels)


def test_what_is_no_lung_in_one_scan_is_refused_or_warned_of(demo, crop):
    """A block of air labelled as lung: nothing like the lungs of the other scan."""
    labels = np.zeros_like(crop.labels)
    labels[:, :40, :40] = 1
    try:
        warnings = compare_scans(demo, replace(crop, labels=labels)).warnings
    except VolumeError as error:
        assert "give two chest CTs of one patient" in str(error)  # noqa: PT017 - either way is right
    else:
        assert any("are both of one patient?" in warning for warning in warnings)


def test_another_patient_is_warned_of(demo, crop):
    """The upper chest of a man against the whole chest of another."""
    warnings = compare_scans(demo, crop).warnings
    assert any(
        "are both of one patient? New, resolved and persistent lesions are unreliable." in one for one in warnings
    )
