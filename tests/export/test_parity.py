"""Parity is measured through the runtime's tiling, and an engine that drifts is refused."""

import numpy as np
import pytest
from phantom import pointwise_logits

from covidseg_export.parity import ParityScan, check_parity, require_parity
from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.errors import BundleError
from covidseg_runtime.intensity import HounsfieldScaling
from covidseg_runtime.tiling import TilePlan

SHAPE = (20, 24, 28)


def three_classes(tiles):
    return pointwise_logits(tiles)[:, (0, 1, 3)]


@pytest.fixture
def scan():
    hu = np.full(SHAPE, 40, np.int16)
    hu[4:16, 4:20, 4:24] = -850
    hu[8:12, 8:12, 8:12] = -300
    scaling = HounsfieldScaling(lower_hu=-1000, upper_hu=200, mean_hu=0, sd_hu=100)
    return ParityScan(hu, scaling, TilePlan(tile_shape=(16, 16, 16), step=0.5))


def compare(change, scan):
    (parity,) = check_parity(
        PointwiseEngine(three_classes), {"other": PointwiseEngine(lambda tiles: change(three_classes(tiles)))}, scan
    ).values()
    return parity


def test_the_same_network_has_no_difference(scan):
    parity = compare(lambda logits: logits, scan)
    assert parity.max_logit_difference == 0
    assert parity.flipped_voxels == 0
    assert parity.voxels == np.prod(SHAPE)
    assert parity.infection_dice == 1
    require_parity({"other": parity})


def test_a_shift_of_every_logit_is_its_size_and_flips_nothing(scan):
    parity = compare(lambda logits: logits + np.float32(0.5), scan)
    assert parity.max_logit_difference == pytest.approx(0.5, abs=1e-5)
    assert parity.mean_logit_difference == pytest.approx(0.5, abs=1e-5)
    assert parity.flipped_voxels == 0
    with pytest.raises(BundleError, match=r"differs from torch by 5\.00e-01 .* Nothing was written"):
        require_parity({"other": parity})


def test_flipped_voxels_are_those_that_change_their_class(scan):
    def infection_becomes_lung(logits):
        changed = logits.copy()
        changed[:, 1] = np.where(logits[:, 2] >= logits.max(axis=1), logits[:, 2] + 1, logits[:, 1])
        return changed

    parity = compare(infection_becomes_lung, scan)
    assert parity.flipped_voxels == 4 * 4 * 4
    assert parity.infection_dice == 0
    assert not parity.holds


def test_a_few_flipped_voxels_alone_are_reason_enough(scan):
    """Ties may flip within the logit tolerance: one voxel in 100,000 is allowed, here one of 13,440 is not."""
    hu = scan.hu.copy()
    hu[8, 8, 8] = -150  # infection and background have the same logit here
    tie = ParityScan(hu, scan.scaling, scan.plan)
    nudge = np.array([1e-4, 0, 0], np.float32)[:, None, None, None]
    parity = compare(lambda logits: logits - nudge, tie)
    assert parity.max_logit_difference <= 1e-3
    assert parity.flipped_voxels == 1
    assert not parity.holds


def test_without_any_infection_its_dice_is_unknown(scan):
    healthy = ParityScan(np.full(SHAPE, -850, np.int16), scan.scaling, scan.plan)
    assert compare(lambda logits: logits, healthy).infection_dice is None
