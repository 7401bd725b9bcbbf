"""Severity scores: every edge of the three rules, what is missing, and what the lobes hold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.measures import Sides
from covidseg_runtime.severity import (
    LOBES,
    NEEDS_LOBES,
    Lobe,
    align_lobes,
    ct_severity_points,
    measure_lobes,
    score_severity,
    total_severity_points,
)
from covidseg_runtime.volume import Volume, to_orientation

# Percent, points of the CT severity score (0 none, 1 below 5 %, 2 up to 25 %, 3 up to 50 %, 4 up to 75 %, 5 above),
# points of the total severity score and CT grade (0 none, 1 up to 25 %, 2 up to 50 %, 3 up to 75 %, 4 above).
EDGES = [
    (0.0, 0, 0),
    (0.001, 1, 1),
    (4.999, 1, 1),
    (5.0, 2, 1),
    (25.0, 2, 1),
    (25.001, 3, 2),
    (50.0, 3, 2),
    (50.001, 4, 3),
    (75.0, 4, 3),
    (75.001, 5, 4),
    (100.0, 5, 4),
]
SPACING_MM = (3.0, 4.0, 5.0)  # a voxel has 0.06 mL
LOBE_ML = 4 * 6 * 4 * 0.06


def _lobes(*percents: float | None) -> tuple[Lobe, ...]:
    return tuple(
        Lobe(name, 0.0 if percent is None else 100.0, percent or 0.0, percent)
        for name, percent in zip(LOBES.values(), percents, strict=True)
    )


def _grid(voxels: NDArray[np.uint8]) -> Volume:
    affine = np.diag((*SPACING_MM, 1.0))
    affine[:3, 3] = (-40.0, 12.0, -300.0)
    return Volume(voxels, affine)


@pytest.fixture
def lobes() -> NDArray[np.uint8]:
    """(X, Y, Z): five blocks of 4 × 6 × 4 voxels side by side along x, two rows away from y = 0."""
    voxels = np.zeros((20, 10, 6), np.uint8)
    for value in LOBES:
        voxels[4 * (value - 1) : 4 * value, 2:8, 1:5] = value
    return voxels


# The three rules


@pytest.mark.parametrize(("percent", "ct_severity", "total_severity"), EDGES)
def test_each_edge_belongs_to_the_step_that_the_rule_names(
    percent: float, ct_severity: int, total_severity: int
) -> None:
    assert ct_severity_points(percent) == ct_severity
    assert total_severity_points(percent) == total_severity


@pytest.mark.parametrize(("percent", "_", "grade"), EDGES)
def test_the_grade_is_that_of_the_worse_lung_whichever_it_is(percent: float, _: int, grade: int) -> None:
    for sides in (Sides(50.0, percent, 0.0), Sides(50.0, 0.0, percent)):
        assert score_severity(sides).ct_grade.value == grade


def test_the_sums_are_those_of_the_points_of_five_lobes() -> None:
    severity = score_severity(Sides(0.0, 0.0, 0.0), _lobes(0.0, 4.999, 5.0, 50.001, 100.0))
    assert severity.ct_severity.value == 0 + 1 + 2 + 4 + 5
    assert severity.total_severity.value == 0 + 1 + 1 + 3 + 4
    assert [score.reason for score in severity.scores] == [None] * 3


@pytest.mark.parametrize(("percent", "ct_severity", "total_severity"), [(0.0, 0, 0), (100.0, 25, 20)])
def test_the_sums_reach_from_0_to_their_highest(percent: float, ct_severity: int, total_severity: int) -> None:
    severity = score_severity(Sides(percent, percent, percent), _lobes(*[percent] * 5))
    assert (severity.ct_severity.value, severity.total_severity.value) == (ct_severity, total_severity)
    assert (severity.ct_grade.highest, severity.ct_severity.highest, severity.total_severity.highest) == (4, 25, 20)


# What is missing


@pytest.mark.parametrize(
    ("sides", "missing"),
    [
        (Sides(9.0, None, 9.0), "the left lung"),
        (Sides(9.0, 9.0, None), "the right lung"),
        (Sides(None, None, None), "the left and the right lung"),
    ],
)
def test_without_a_lung_there_is_no_grade_but_its_reason(sides: Sides, missing: str) -> None:
    grade = score_severity(sides).ct_grade
    assert grade.value is None
    assert grade.reason == f"needs both lungs; {missing} has no volume here"


def test_without_lobes_neither_sum_is_given_but_its_reason() -> None:
    severity = score_severity(Sides(9.0, 9.0, 9.0))
    for score in (severity.ct_severity, severity.total_severity):
        assert score.value is None
        assert score.reason == NEEDS_LOBES
    assert severity.lobes == ()


def test_with_a_lobe_missing_neither_sum_is_given_and_the_lobe_is_named() -> None:
    severity = score_severity(Sides(9.0, 9.0, 9.0), _lobes(1.0, 1.0, 1.0, None, 1.0))
    for score in (severity.ct_severity, severity.total_severity):
        assert score.value is None
        assert score.reason == "needs five lobes; no voxel is labelled right middle"


# What lobes hold


def test_a_lobe_includes_its_infection_in_ml_of_unequal_spacing(lobes: NDArray[np.uint8]) -> None:
    labels = np.zeros_like(lobes)
    labels[5, 3:6, 2] = 3  # three voxels of the left lower lobe
    measured = measure_lobes(_grid(lobes), labels, lobes)
    assert [lobe.name for lobe in measured] == list(LOBES.values())
    assert [lobe.volume_ml for lobe in measured] == pytest.approx([LOBE_ML] * 5)
    assert [lobe.infection_ml for lobe in measured] == pytest.approx([0, 0.18, 0, 0, 0])
    assert [lobe.infection_percent for lobe in measured] == pytest.approx([0, 300 / 96, 0, 0, 0])


def test_lungs_without_infection_do_not_count(lobes: NDArray[np.uint8]) -> None:
    labels = np.where(lobes > 0, 1 + (lobes > 2), 0).astype(np.uint8)
    assert [lobe.infection_ml for lobe in measure_lobes(_grid(lobes), labels, lobes)] == [0.0] * 5


def test_infection_outside_every_lobe_belongs_to_the_nearest_and_enlarges_it(lobes: NDArray[np.uint8]) -> None:
    labels = np.zeros_like(lobes)
    labels[9, 0:2, 2] = 3  # two voxels, straight before the right upper lobe
    labels[19, 9, 5] = 3  # beyond the corner of the right lower lobe
    measured = measure_lobes(_grid(lobes), labels, lobes)
    assert [lobe.infection_ml for lobe in measured] == pytest.approx([0, 0, 0.12, 0, 0.06])
    assert [lobe.volume_ml - LOBE_ML for lobe in measured] == pytest.approx([0, 0, 0.12, 0, 0.06])


def test_near_is_measured_in_mm_and_not_in_voxels() -> None:
    lobes = np.zeros((9, 6, 5), np.uint8)
    lobes[0, 0, 0], lobes[4, 0, 4] = 1, 5
    labels = np.zeros_like(lobes)
    # 4 voxels along x are 12 mm; 3 voxels along z are 15 mm.
    labels[4, 0, 0] = 3
    labels[4, 0, 1] = 3
    measured = measure_lobes(_grid(lobes), labels, lobes)
    # The second is 12 and 5 mm (13.0) from lobe 1, 15 mm from lobe 5: both belong to lobe 1.
    assert [lobe.infection_ml for lobe in measured] == pytest.approx([0.12, 0, 0, 0, 0])


def test_a_lobe_without_any_voxel_has_no_share(lobes: NDArray[np.uint8]) -> None:
    lobes[lobes == 4] = 0
    measured = measure_lobes(_grid(lobes), np.zeros_like(lobes), lobes)
    assert [lobe.infection_percent for lobe in measured] == [0.0, 0.0, 0.0, None, 0.0]


@pytest.mark.parametrize("orientation", ["LPS", "SPL", "PIR"])
def test_the_order_of_the_files_axes_changes_nothing(lobes: NDArray[np.uint8], orientation: str) -> None:
    labels = np.zeros_like(lobes)
    labels[5, 3:6, 2] = 3
    labels[9, 0:2, 2] = 3
    turned = [to_orientation(_grid(array), orientation) for array in (lobes, labels)]
    measured = measure_lobes(turned[0], turned[1].voxels, turned[0].voxels)
    expected = measure_lobes(_grid(lobes), labels, lobes)
    assert [lobe.infection_ml for lobe in measured] == pytest.approx([lobe.infection_ml for lobe in expected])
    assert [lobe.volume_ml for lobe in measured] == pytest.approx([lobe.volume_ml for lobe in expected])


# Lobes from another tool


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SPL", "PIR"])
def test_lobes_of_another_orientation_are_turned_onto_the_scan(lobes: NDArray[np.uint8], orientation: str) -> None:
    aligned = align_lobes(_grid(np.zeros_like(lobes)), to_orientation(_grid(lobes), orientation))
    np.testing.assert_array_equal(aligned, lobes)


def test_lobes_of_another_shape_are_refused(lobes: NDArray[np.uint8]) -> None:
    with pytest.raises(VolumeError, match=r"shape \(20, 10, 5\), the scan \(20, 10, 6\): they are not of one scan"):
        align_lobes(_grid(lobes), _grid(lobes[:, :, :5]))


def test_lobes_at_another_place_are_refused_from_half_a_voxel_on(lobes: NDArray[np.uint8]) -> None:
    moved = _grid(lobes)
    moved.affine[0, 3] += 1.4  # the smallest spacing is 3 mm
    np.testing.assert_array_equal(align_lobes(_grid(lobes), moved), lobes)
    moved.affine[0, 3] += 0.2
    with pytest.raises(VolumeError, match=r"up to 1\.60 mm apart in the patient"):
        align_lobes(_grid(lobes), moved)


@pytest.mark.parametrize(("value", "named"), [(6, r"\[1, 2, 3, 4, 5, 6\]"), (0, r"\[\]")])
def test_other_labels_than_those_of_lobes_are_refused(lobes: NDArray[np.uint8], value: int, named: str) -> None:
    if value:
        lobes[0, 0, 0] = value
    else:
        lobes[:] = 0
    with pytest.raises(VolumeError, match=rf"holds the labels {named}; expected are 1 left upper, .* lungmask"):
        align_lobes(_grid(lobes), _grid(lobes))
