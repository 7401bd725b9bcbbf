"""Boxes of infection whose fate is known: which are called new, resolved, persistent."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from phantom import spl_affine

from covidseg_runtime.follow_up.lesion_matching import LEAST_SHARE, SMALLEST_CALLED_ML, TOLERANCE_MM, match_lesions
from covidseg_runtime.follow_up.placement import Placement
from covidseg_runtime.volume import Volume

SAME_PLACE = Placement.of_matrix(np.eye(4))
SHAPE = (60, 60, 80)
MM = (1.0, 1.0, 1.0)
TEN = np.s_[20:30, 20:30, 20:30]  # 1 mL


def labelled(*boxes: tuple[slice, ...]) -> Volume:
    labels = np.ones(SHAPE, np.uint8)
    for box in boxes:
        labels[box] = 3
    return Volume(labels, spl_affine(MM))


def fates(prior: Volume, current: Volume, placement: Placement = SAME_PLACE) -> list[tuple[object, ...]]:
    changes = match_lesions(prior, current, placement).listed
    return [
        (one.change, round(one.prior_ml, 3), round(one.current_ml, 3), one.prior_lesions, one.current_lesions)
        for one in changes
    ]


def test_a_lesion_without_counterpart_is_new_or_resolved():
    assert fates(labelled(), labelled(TEN)) == [("new", 0.0, 1.0, 0, 1)]
    assert fates(labelled(TEN), labelled()) == [("resolved", 1.0, 0.0, 1, 0)]
    assert fates(labelled(), labelled()) == []


def test_a_lesion_that_grows_or_shrinks_persists():
    large = np.s_[15:35, 20:30, 20:30]
    assert fates(labelled(TEN), labelled(large)) == [("persistent", 1.0, 2.0, 1, 1)]
    assert fates(labelled(large), labelled(TEN)) == [("persistent", 2.0, 1.0, 1, 1)]


def test_lesions_that_merge_or_split_are_one_entry():
    parts, whole = (TEN, np.s_[20:30, 20:30, 32:42]), np.s_[20:30, 20:30, 20:42]
    assert fates(labelled(*parts), labelled(whole)) == [("persistent", 2.0, 2.2, 2, 1)]
    assert fates(labelled(whole), labelled(*parts)) == [("persistent", 2.2, 2.0, 1, 2)]
    changes = match_lesions(labelled(*parts), labelled(whole), SAME_PLACE).describe()
    assert (changes["persistent"]["merged"], changes["persistent"]["split"]) == (1, 0)


def test_links_chain():
    """A prior lesion under two current ones, one of which lies over a second prior lesion."""
    prior = labelled(np.s_[20:30, 20:30, 20:40], np.s_[20:30, 20:30, 44:54])
    current = labelled(np.s_[20:30, 20:30, 20:28], np.s_[20:30, 20:30, 32:54])
    assert fates(prior, current) == [("persistent", 3.0, 3.0, 2, 2)]


@pytest.mark.parametrize(("gap_mm", "kinds"), [(0, {"persistent"}), (1, {"persistent"}), (5, {"new", "resolved"})])
def test_what_lies_beside_is_the_same_if_a_quarter_is_within_the_tolerance(gap_mm, kinds):
    """Slabs 10 mm thick: side by side 5 of 10 layers lie within 5 mm, 1 mm apart 4, 5 mm apart none."""
    beside = np.s_[20:30, 20:30, 30 + gap_mm : 40 + gap_mm]
    assert {fate[0] for fate in fates(labelled(TEN), labelled(beside))} == kinds
    assert (TOLERANCE_MM, LEAST_SHARE) == (5.0, 0.25)


def test_a_new_lesion_beside_a_large_old_one_is_new():
    """3 mm apart, 20 mm thick: 2 of its 20 layers lie within 5 mm of the old one, and 2 of the old one's 30."""
    old, new = np.s_[10:40, 10:40, 10:40], np.s_[10:30, 10:30, 43:63]
    assert fates(labelled(old), labelled(old, new)) == [("persistent", 27.0, 27.0, 1, 1), ("new", 0.0, 8.0, 0, 1)]


def test_the_map_between_the_scans_is_applied():
    shift = np.eye(4)
    shift[0, 3] = -30.0  # the patient's left is towards lower x: where the array's x grows by 30
    elsewhere = np.s_[20:30, 20:30, 50:60]
    (change,) = match_lesions(labelled(elsewhere), labelled(TEN), Placement.of_matrix(shift)).listed
    assert change.change == "persistent"
    assert_allclose(change.center_mm, (31 - 24.5, 17 - 24.5, -250 + 24.5))
    assert_allclose(change.prior_center_mm, (31 - 54.5, 17 - 24.5, -250 + 24.5))


def test_the_place_of_a_resolved_lesion_is_told_in_both_scans():
    shift = np.eye(4)
    shift[0, 3] = -30.0
    elsewhere = np.s_[20:30, 20:30, 50:60]
    (change,) = match_lesions(labelled(elsewhere), labelled(), Placement.of_matrix(shift)).listed
    assert_allclose(change.center_mm, (31 - 24.5, 17 - 24.5, -250 + 24.5))
    assert_allclose(change.prior_center_mm, (31 - 54.5, 17 - 24.5, -250 + 24.5))


def test_what_the_other_scan_does_not_see_is_neither_new_nor_resolved():
    low = np.s_[2:12, 20:30, 20:30]
    whole, upper = labelled(low, TEN), labelled(TEN)
    affine = upper.affine.copy()
    affine[:3, 3] += affine[:3, 0] * 10
    upper = Volume(upper.voxels[10:], affine)  # sees two of the ten slices of the lower lesion
    for prior, current, outside in ((whole, upper, (1, 1.0, 0, 0.0)), (upper, whole, (0, 0.0, 1, 1.0))):
        changes = match_lesions(prior, current, SAME_PLACE)
        assert [one.change for one in changes.listed] == ["persistent"]
        unseen = changes.outside_view
        assert (unseen.prior_count, unseen.prior_ml, unseen.current_count, unseen.current_ml) == outside


def test_a_persistent_lesion_that_reaches_out_of_view_is_counted():
    affine = spl_affine(MM)
    affine[:3, 3] += affine[:3, 0] * 25
    cut = Volume(labelled(TEN).voxels[25:], affine)
    changes = match_lesions(labelled(TEN), cut, SAME_PLACE)
    assert [(one.change, one.prior_ml, one.current_ml) for one in changes.listed] == [("persistent", 1.0, 0.5)]
    assert changes.reaching_outside == 1
    assert match_lesions(labelled(TEN), labelled(TEN), SAME_PLACE).reaching_outside == 0


def test_small_lesions_are_called_neither_new_nor_resolved():
    assert SMALLEST_CALLED_ML == 0.5
    small, enough = np.s_[40:50, 40:50, 40:44], np.s_[40:50, 40:50, 40:45]  # 0.4 and 0.5 mL
    changes = match_lesions(labelled(), labelled(small), SAME_PLACE)
    assert changes.listed == ()
    assert (changes.small.current_count, changes.small.current_ml) == (1, 0.4)
    assert fates(labelled(), labelled(enough)) == [("new", 0.0, 0.5, 0, 1)]
    assert fates(labelled(small), labelled(small)) == [("persistent", 0.4, 0.4, 1, 1)]


def test_thick_slices_find_their_lesions_in_thin_ones():
    """The same boxes in slices of 10 mm; each is measured on its own grid."""
    thick = np.ones((6, 60, 80), np.uint8)
    thick[2, 20:30, 20:30] = 3
    affine = spl_affine((10.0, 1.0, 1.0))
    affine[:3, 3] += spl_affine(MM)[:3, 0] * 4.5
    assert fates(labelled(TEN), Volume(thick, affine)) == [("persistent", 1.0, 1.0, 1, 1)]


def test_no_millilitre_is_lost():
    rng = np.random.default_rng(0)
    corners, sizes = rng.integers(0, 46, (40, 3)), rng.integers(2, 14, (40, 3))
    boxes = [tuple(map(slice, corner, corner + size)) for corner, size in zip(corners, sizes, strict=True)]
    prior, current = labelled(*boxes[:25]), labelled(*boxes[15:])
    changes = match_lesions(prior, current, SAME_PLACE)
    assert {one.change for one in changes.listed} == {"new", "resolved", "persistent"}
    prior_ml = sum(one.prior_ml for one in changes.listed) + changes.small.prior_ml + changes.outside_view.prior_ml
    current_ml = sum(one.current_ml for one in changes.listed) + changes.small.current_ml
    assert prior_ml == pytest.approx((prior.voxels == 3).sum() / 1000)
    assert current_ml == pytest.approx((current.voxels == 3).sum() / 1000)
    volumes = [max(one.prior_ml, one.current_ml) for one in changes.listed]
    assert volumes == sorted(volumes, reverse=True)
