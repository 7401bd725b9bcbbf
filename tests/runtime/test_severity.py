"""The scores' edges, and that none is given without the regions it is defined on."""

from __future__ import annotations

import numpy as np
import pytest
from phantom import spl_affine

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.measures import Sides
from covidseg_runtime.severity import (
    LOBES,
    Lobe,
    align_lobes,
    ct_severity_points,
    measure_lobes,
    score_severity,
    total_severity_points,
)
from covidseg_runtime.volume import Volume, to_orientation

# Columns (Z, Y, X) = (1, 1, n) of 10 x 10 x 10 mm: one voxel is 1 mL.
AFFINE = spl_affine((10.0, 10.0, 10.0))


def _lobes(*shares: float | None) -> tuple[Lobe, ...]:
    return tuple(
        Lobe(name, 0.0 if share is None else 100.0, share or 0.0, share)
        for name, share in zip(LOBES.values(), shares, strict=True)
    )


@pytest.mark.parametrize(
    ("percent", "points"),
    [
        (0, 0),
        (0.001, 1),
        (4.999, 1),
        (5, 2),
        (25, 2),
        (25.001, 3),
        (50, 3),
        (50.001, 4),
        (75, 4),
        (75.001, 5),
        (100, 5),
    ],
)
def test_points_of_a_lobe_in_the_ct_severity_score(percent: float, points: int) -> None:
    assert ct_severity_points(percent) == points


@pytest.mark.parametrize(
    ("percent", "points"),
    [(0, 0), (0.001, 1), (25, 1), (25.001, 2), (50, 2), (50.001, 3), (75, 3), (75.001, 4), (100, 4)],
)
def test_points_of_a_lobe_in_the_total_severity_score(percent: float, points: int) -> None:
    assert total_severity_points(percent) == points


@pytest.mark.parametrize(
    ("left", "right", "grade"),
    [(0, 0, 0), (0, 0.01, 1), (25, 3, 1), (25.01, 25, 2), (10, 50, 2), (50.01, 0, 3), (75, 75, 3), (1, 75.01, 4)],
)
def test_the_worse_lung_gives_the_ct_grade(left: float, right: float, grade: int) -> None:
    severity = score_severity(Sides(whole=(left + right) / 2, left=left, right=right))
    assert severity.ct_grade.value == grade
    assert severity.ct_grade.reason is None


def test_without_a_lung_no_grade_is_given_and_the_reason_names_it() -> None:
    grade = score_severity(Sides(whole=8.0, left=None, right=8.0)).ct_grade
    assert grade.value is None
    assert grade.reason == "needs both lungs; the left lung has no volume here"
    neither = score_severity(Sides(None, None, None)).ct_grade
    assert neither.reason == "needs both lungs; the left and the right lung has no volume here"


def test_without_lobes_their_scores_are_not_given() -> None:
    severity = score_severity(Sides(4.0, 3.0, 5.0))
    for score in (severity.ct_severity, severity.total_severity):
        assert score.value is None
        assert "five lobes" in str(score.reason)
    assert severity.lobes == ()


def test_the_scores_are_sums_of_five_lobes() -> None:
    severity = score_severity(Sides(40.0, 30.0, 50.0), _lobes(0.0, 4.0, 25.0, 60.0, 80.0))
    assert severity.ct_severity.value == 0 + 1 + 2 + 4 + 5
    assert severity.total_severity.value == 0 + 1 + 1 + 3 + 4
    assert (severity.ct_severity.highest, severity.total_severity.highest) == (25, 20)


def test_a_lobe_without_voxels_is_named_as_the_reason() -> None:
    score = score_severity(Sides(40.0, 30.0, 50.0), _lobes(0.0, 4.0, 25.0, None, 80.0)).ct_severity
    assert score.value is None
    assert score.reason == "needs five lobes; no voxel is labelled right middle"


def test_infection_outside_every_lobe_belongs_to_the_nearest() -> None:
    lobes = np.array([[[1, 1, 0, 0, 2, 2, 2, 3, 4, 5]]], np.uint8)
    labels = np.array([[[1, 3, 3, 0, 0, 3, 3, 0, 0, 3]]], np.uint8)
    scan = Volume(np.full(labels.shape, -800, np.int16), AFFINE)
    upper, lower, *right = measure_lobes(scan, labels, lobes)
    # Lobe 1: two voxels and the infected one beside it. Lobe 2: three, two of them infected.
    assert (upper.name, upper.volume_ml, upper.infection_ml) == ("left upper", 3.0, 2.0)
    assert (lower.volume_ml, lower.infection_ml) == (3.0, 2.0)
    assert lower.infection_percent == pytest.approx(200 / 3)
    assert [(lobe.volume_ml, lobe.infection_percent) for lobe in right] == [(1.0, 0.0), (1.0, 0.0), (1.0, 100.0)]


def test_lobes_with_another_order_of_axes_are_turned() -> None:
    lobes = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 6
    scan = Volume(np.zeros(lobes.shape, np.int16), AFFINE)
    np.testing.assert_array_equal(align_lobes(scan, to_orientation(Volume(lobes, AFFINE), "RAS")), lobes)


@pytest.mark.parametrize(
    ("lobes", "affine", "message"),
    [
        (np.ones((2, 3, 5), np.uint8), AFFINE, "map of lobes has shape"),
        (np.ones((2, 3, 4), np.uint8), AFFINE + np.eye(4, k=3) * 6, "mm apart"),
        (np.zeros((2, 3, 4), np.uint8), AFFINE, r"labels \[\]; expected are 1 left upper, 2 left lower, 3 right"),
        (np.full((2, 3, 4), 8, np.uint8), AFFINE, r"labels \[8\]; expected"),
    ],
)
def test_what_is_no_map_of_five_lobes_is_refused(lobes: np.ndarray, affine: np.ndarray, message: str) -> None:
    scan = Volume(np.zeros((2, 3, 4), np.int16), AFFINE)
    with pytest.raises(VolumeError, match=message):
        align_lobes(scan, Volume(lobes, affine))
