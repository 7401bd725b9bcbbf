"""Parity is measured through the whole runtime, and what differs is refused in words."""

from dataclasses import replace

import numpy as np
import pytest
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, pointwise_logits, spl_affine

from covidseg_export.parity import Candidate, ParityCheck, ParityLimits, ParityScan, require_parity
from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.errors import BundleError
from covidseg_runtime.tiling import TileFit
from covidseg_runtime.volume import Volume

VOXEL_ML = float(np.prod(PHANTOM_SPACING_MM)) / 1000
LIMITS = ParityLimits()


@pytest.fixture
def check(tiny_bundle):
    scan = ParityScan("phantom", Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM)), phantom_labels() == 3)
    return ParityCheck(load_bundle(tiny_bundle), PointwiseEngine(pointwise_logits), scan)


def compare(check, change, precision="f32"):
    engine = PointwiseEngine(lambda tiles: change(pointwise_logits(tiles)))
    engine.precision = precision
    return check.compare(Candidate("model.onnx", engine))


def test_the_same_network_has_no_difference(check):
    parity = compare(check, lambda logits: logits)
    assert parity.max_logit_difference == parity.mean_logit_difference == 0
    assert parity.flipped_voxels == 0
    assert parity.voxels == phantom_labels().size
    assert (parity.infection_dice, parity.dsc, parity.torch_dsc) == (1, 1, 1)
    assert parity.infection_ml == pytest.approx(6 * 7 * 7 * VOXEL_ML, abs=1e-3)
    assert parity.volume_change_ml == 0
    require_parity((parity,), LIMITS)


def test_an_engine_of_one_tile_is_compared_with_the_reference_on_that_tile(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    bundle = replace(bundle, tile_plan=replace(bundle.tile_plan, fit=TileFit((4, 4, 4), 32**3)))
    scan = ParityScan("phantom", Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM)))
    check, seen = ParityCheck(bundle, PointwiseEngine(pointwise_logits), scan), {}
    for any_tile in (True, False):
        shapes = seen[any_tile] = set()
        engine = PointwiseEngine(lambda tiles, shapes=shapes: (shapes.add(tiles.shape[2:]), pointwise_logits(tiles))[1])
        engine.any_tile = any_tile
        assert check.compare(Candidate("model.onnx", engine)).max_logit_difference == 0
    assert seen[False] == {(16, 16, 16)}
    assert len(seen[True]) == 1
    assert seen[True] != seen[False]


def test_a_shift_of_every_logit_is_its_size_and_flips_nothing(check):
    parity = compare(check, lambda logits: logits + np.float32(0.5))
    assert parity.max_logit_difference == pytest.approx(0.5, abs=1e-5)
    assert parity.mean_logit_difference == pytest.approx(0.5, abs=1e-5)
    assert parity.flipped_voxels == 0
    with pytest.raises(BundleError, match=r"differs from torch on phantom: a logit differs by 5\.00e-01"):
        require_parity((parity,), LIMITS)


def lose_infection(logits):
    changed = logits.copy()
    changed[:, 3] = -100
    return changed


def test_infection_that_is_lost_is_counted_in_voxels_volume_and_dsc(check):
    parity = compare(check, lose_infection)
    assert parity.flipped_voxels == 6 * 7 * 7
    assert parity.volume_change_ml == pytest.approx(-6 * 7 * 7 * VOXEL_ML, abs=1e-3)
    assert (parity.infection_dice, parity.dsc, parity.torch_dsc) == (0, 0, 1)
    assert parity.dsc_change == 1
    for precision in ("f32", "bf16", "f16", "int8"):
        assert replace(parity, precision=precision).faults(LIMITS)


def test_rounding_is_allowed_in_half_precision_and_not_in_float32(check):
    generator = np.random.default_rng(0)
    parity = compare(check, lambda logits: logits + generator.normal(0, 0.005, logits.shape).astype(np.float32), "f16")
    assert parity.mean_logit_difference == pytest.approx(0.005 * np.sqrt(2 / np.pi), rel=0.05)
    assert parity.faults(LIMITS) == ()
    assert replace(parity, precision="f32").faults(LIMITS)


def test_a_small_shift_that_no_label_shows_is_still_caught_in_half_precision(check):
    """As a bias that was lost would be."""
    parity = compare(check, lambda logits: logits + np.float32(0.05), "f16")
    assert parity.dsc_change == 0
    assert parity.faults(LIMITS) == ("the mean logit differs by 5.00e-02, 1e-02 is allowed",)


def test_the_limits_are_those_of_the_precision(check):
    parity = replace(compare(check, lambda logits: logits), dsc=0.997, torch_dsc=1.0)
    assert replace(parity, precision="f16").faults(LIMITS)
    assert replace(parity, precision="int8").faults(LIMITS) == ()
    assert replace(parity, precision="bf16").faults(LIMITS) == ()
    assert replace(parity, precision="int8").faults(ParityLimits(int8_dsc_change=0.002))


def test_without_a_truth_the_dsc_against_torch_is_judged(check):
    parity = replace(compare(check, lambda logits: logits), dsc=None, torch_dsc=None, infection_dice=0.99)
    assert parity.dsc_change == pytest.approx(0.01)


def test_not_a_number_is_outside_every_limit(check):
    def overflow(logits):
        return np.where(np.arange(logits.shape[-1]) == 3, np.float32(np.nan), logits)

    for precision in ("f32", "f16", "int8"):
        assert compare(check, overflow, precision).faults(LIMITS)


def test_logits_of_another_shape_are_refused(check):
    with pytest.raises(BundleError, match=r"gives logits of shape \(3, 16, 16, 16\), torch \(4, 16, 16, 16\)"):
        compare(check, lambda logits: logits[:, :3])


def test_the_result_as_json_says_whether_it_passed(check):
    assert compare(check, lambda logits: logits).to_dict(LIMITS)["passed"] is True
    assert compare(check, lose_infection).to_dict(LIMITS)["passed"] is False


def test_bfloat16_is_recorded_and_refuses_nothing(check):
    parity = compare(check, lose_infection, "bf16")
    assert parity.to_dict(LIMITS)["passed"] is False
    require_parity((parity,), LIMITS)
    with pytest.raises(BundleError):
        require_parity((replace(parity, precision="int8"),), LIMITS)
