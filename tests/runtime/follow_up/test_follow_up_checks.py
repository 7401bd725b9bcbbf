"""What a reader of a comparison is warned of, each by what causes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from phantom import phantom_hu, phantom_labels, spl_affine

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.follow_up.changes import LesionChanges, Uncalled
from covidseg_runtime.follow_up.follow_up_checks import check_follow_up, tells_consolidation
from covidseg_runtime.follow_up.labelled_scan import LabelledScan
from covidseg_runtime.follow_up.placement import Placement
from covidseg_runtime.follow_up.registration import Registration
from covidseg_runtime.measures import measure
from covidseg_runtime.volume import Volume

NONE = Uncalled(0, 0.0, 0, 0.0)
LESIONS = LesionChanges((), NONE, NONE, 0)
GOOD = Registration(Placement.of_matrix(np.eye(4)), 0.97, 0.98, (0.0, 0.0, 0.0), 1.0, 1.0)
# What is said of a scan alone comes from its report.
REPORT: Mapping[str, Any] = {
    "model": {"name": "default", "version": "0.3.0", "files": {"model.onnx": "ab12"}},
    "uncertainty": {"infection_volume_ml": None},
    "warnings": [],
}


def scan(spacing_mm: tuple[float, float, float] = (9.0, 5.0, 5.0), **report: Any) -> LabelledScan:
    volume = Volume(phantom_hu(), spl_affine(spacing_mm))
    return LabelledScan(volume, phantom_labels(), "phantom.nii.gz", {**REPORT, **report})


def warnings_of(prior: LabelledScan, current: LabelledScan, registration=GOOD, lesions=LESIONS) -> tuple[str, ...]:
    measures = tuple(measure(one.labels, one.volume.voxels, one.volume.spacing_mm) for one in (prior, current))
    return check_follow_up((prior, current), measures, registration, lesions)


def a_bit_larger(factor: float, **report: Any) -> LabelledScan:
    """Lungs larger by a factor in volume."""
    return scan((9.0 * factor, 5.0, 5.0), **report)


def test_a_sound_pair_is_warned_of_nothing():
    assert warnings_of(scan(), a_bit_larger(1.1)) == ()


def test_the_same_scan_twice_is_told():
    assert warnings_of(scan(), scan()) == ("The prior and the current scan are the same CT: nothing can have changed.",)


@pytest.mark.parametrize(("factor", "told"), [(1.16, "+16%"), (0.84, "-16%"), (1.14, None), (0.86, None)])
def test_another_breath_hold_is_told(factor, told):
    found = warnings_of(scan(), a_bit_larger(factor))
    assert [f"({told}): another breath-hold or field of view" in one for one in found] == ([True] if told else [])


def test_other_slices_are_told():
    """Half as many slices, twice as far apart."""
    thick = Volume(phantom_hu()[::2], spl_affine((18.0, 5.0, 5.0)))
    (warning,) = warnings_of(scan(), LabelledScan(thick, phantom_labels()[::2], "thick.nii.gz", REPORT))
    assert warning.startswith(
        "Slices are 18 mm apart, in the prior 9 mm: a network finds other volumes in other slices"
    )


def test_lungs_that_do_not_match_are_told_or_refused():
    (warning,) = warnings_of(scan(), a_bit_larger(1.1), replace(GOOD, lung_dice=0.925))
    assert "(Dice 0.925 after registration, one patient has 0.93 and more): are both of one patient?" in warning
    for dice in (0.69, float("nan")):
        with pytest.raises(VolumeError, match="hardly lie over each other.*give two chest CTs of one patient"):
            warnings_of(scan(), a_bit_larger(1.1), replace(GOOD, lung_dice=dice))


def test_parts_that_the_other_scan_does_not_see_are_told():
    found = warnings_of(scan(), a_bit_larger(1.1), replace(GOOD, share_in_prior=0.6, share_in_current=0.9))
    assert [one.partition(":")[0] for one in found] == [
        "40% of the current lungs lie outside the field of view of the prior",
        "10% of the prior's lungs lie outside the field of view of the current scan",
    ]
    (warning,) = warnings_of(scan(), a_bit_larger(1.1), lesions=replace(LESIONS, reaching_outside=2))
    assert warning.startswith("2 persistent lesions reach beyond the other scan's field of view")


@pytest.mark.parametrize(
    "other",
    [{"version": "0.2.0"}, {"name": "accurate"}, {"files": {"model.onnx": "cd34"}}],
    ids=lambda one: next(iter(one)),
)
def test_another_model_is_told(other):
    (warning,) = warnings_of(scan(model={**REPORT["model"], **other}), a_bit_larger(1.1))
    assert warning.endswith("what differs may be the models' doing; segment both with one model.")


def test_a_change_within_the_uncertainty_is_told():
    def within(low: float, high: float) -> dict[str, Any]:
        return {"uncertainty": {"infection_volume_ml": {"low_ml": low, "high_ml": high, "cases": 9, "share": 0.8}}}

    (warning,) = warnings_of(scan(**within(20, 40)), a_bit_larger(1.1, **within(35, 70)))
    assert "20 to 40 mL in the prior, 35 to 70 mL in the current scan" in warning
    assert warnings_of(scan(**within(20, 40)), a_bit_larger(1.1, **within(50, 70))) == ()
    assert warnings_of(scan(**within(0, 0)), a_bit_larger(1.1, **within(0, 0))) == ()


def test_a_window_without_the_limit_of_consolidation_is_told():
    current = a_bit_larger(1.1)
    narrow = replace(current, volume=replace(current.volume, window_hu=(-160.0, 240.0)))
    wide = replace(current, volume=replace(current.volume, window_hu=(-1250.0, 250.0)))
    (warning,) = warnings_of(scan(), narrow)
    assert "(-160 to 240 HU) does not part ground glass from consolidation at -300 HU: both are unknown." in warning
    assert [tells_consolidation(one) for one in (current, narrow, wide)] == [True, False, True]


def test_what_is_to_be_said_of_each_scan_is_said_with_its_name():
    found = warnings_of(scan(warnings=["Slices are 8 mm apart."]), a_bit_larger(1.1, warnings=["The lungs touch."]))
    assert found == ("Prior: Slices are 8 mm apart.", "Current: The lungs touch.")


def test_without_a_report_the_scan_is_judged_again():
    """The phantom's lungs reach no border; cut through them, they do."""
    current = replace(scan(), report=None)
    cut = Volume(current.volume.voxels[:16], current.volume.affine)
    found = warnings_of(scan(), LabelledScan(cut, current.labels[:16], "cut.nii.gz"))
    assert any(one.startswith("Current: The lungs touch the border of the scan (head)") for one in found)
