"""One temperature, found again where it is known, and applied by the runtime to the probability alone."""

import json
from dataclasses import replace
from math import log

import numpy as np
import pytest
from phantom import PHANTOM_SPACING_MM, TILE_SHAPE, phantom_hu, phantom_labels, pointwise_logits, spl_affine

from covidseg_export import calibration
from covidseg_export.calibration import (
    LungVoxels,
    calibration_in_a_line,
    calibration_lines,
    calibration_problem,
    describe_calibration,
    draw_lung_voxels,
    expected_calibration_error,
    fit_temperature,
    mean_calibration_error,
    mean_nll,
)
from covidseg_export.source import read_bundle
from covidseg_runtime.bundle import default_bundle_path, load_bundle
from covidseg_runtime.calibration import NOT_CALIBRATED, Calibration
from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.errors import BundleError
from covidseg_runtime.intensity import clip_and_scale_hounsfield
from covidseg_runtime.report import build_report, describe_scan
from covidseg_runtime.segment_settings import SegmentSettings
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.sliding_window import softmax
from covidseg_runtime.tiling import TilePlan
from covidseg_runtime.volume import Volume
from covidseg_train.datasets.dataset import CaseVolumes


def drawn_case(temperature, *, voxels=40_000, seed=0, classes=3):
    """Voxels whose class was drawn from softmax(logits / temperature); the last class is infection."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (classes, voxels)).astype(np.float32)
    gumbel = rng.gumbel(size=logits.shape)  # argmax(x + Gumbel noise) is a draw from softmax(x)
    return LungVoxels(f"case {seed}", logits, (logits / temperature + gumbel).argmax(axis=0) == classes - 1)


def phantom_case(marked=None):
    affine = spl_affine(PHANTOM_SPACING_MM)
    marked = phantom_labels() == 3 if marked is None else marked
    return CaseVolumes(Volume(phantom_hu(), affine), Volume(marked.astype(np.uint8), affine))


def with_calibration(folder, **section):
    """The bundle of a folder, loaded after its description was given a calibration."""
    file = folder / "bundle.json"
    description = json.loads(file.read_text())
    description["calibration"] = {"temperature": 2.5, "cases": ["a", "b"], **section}
    file.write_text(json.dumps(description))
    return load_bundle(folder)


@pytest.mark.parametrize("classes", [3, 4])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature, classes):
    cases = [drawn_case(temperature, seed=seed, classes=classes) for seed in (1, 2)]
    assert fit_temperature(cases) == pytest.approx(temperature, rel=0.03)


def test_the_fitted_temperature_lowers_the_error_of_calibration_of_cases_it_never_saw():
    temperature = fit_temperature([drawn_case(2.5, seed=1)])
    unseen = [drawn_case(2.5, seed=2)]
    assert mean_calibration_error(unseen, 1.0) > 0.05
    assert mean_calibration_error(unseen, temperature) < 0.01
    assert mean_nll(unseen, temperature) < mean_nll(unseen, 1.0)


def test_log_odds_are_those_of_the_softmax():
    one = drawn_case(1.0, voxels=50, classes=4)
    probability = softmax((one.logits / np.float32(3))[:, None, None])[-1].ravel()
    np.testing.assert_allclose(one.log_odds(3.0), np.log(probability / (1 - probability)), rtol=1e-4, atol=1e-4)


def test_every_case_has_the_same_weight_however_many_voxels_it_has():
    even = LungVoxels("one voxel of p = 1/2", np.zeros((2, 1), np.float32), np.ones(1, np.bool_))
    sure = np.array([[0.0], [log(3)]], np.float32).repeat(1000, axis=1)
    sure = LungVoxels("a thousand of p = 3/4", sure, np.ones(1000, np.bool_))
    assert mean_nll([even, sure], 1.0) == pytest.approx((log(2) + log(4 / 3)) / 2)
    # Distances from the truth: 1/2 and 1/4, in two bins.
    assert mean_calibration_error([even, sure], 1.0) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_the_error_of_calibration_by_hand():
    probability = np.array([0.1, 0.1, 0.9, 0.9, 1.0])
    infected = np.array([False, True, True, False, True])
    weights = np.array([0.2, 0.2, 0.3, 0.1, 0.2])
    # Bin [1/15, 2/15): 0.4 · |1/2 - 0.1|. Bin [13/15, 14/15): 0.4 · |3/4 - 0.9|. The last bin is right.
    assert expected_calibration_error(probability, infected, weights) == pytest.approx(0.16 + 0.06)


def test_errors_of_one_bin_cancel_and_those_of_two_do_not():
    infected, weights = np.array([True, False]), np.array([0.5, 0.5])
    assert expected_calibration_error(np.array([0.51, 0.51]), infected, weights) == pytest.approx(0.01)
    assert expected_calibration_error(np.array([0.41, 0.61]), infected, weights) == pytest.approx(0.5 * (0.59 + 0.61))


def test_voxels_are_those_of_lung_and_infection_and_of_the_reference(tiny_bundle):
    marked = phantom_labels() == 3
    marked[0:2, 0:3, 0:4] = True  # soft tissue, which the network calls background
    (one,) = draw_lung_voxels(
        load_bundle(tiny_bundle), PointwiseEngine(pointwise_logits), [("phantom", phantom_case(marked))]
    )
    assert (one.case, one.infected.sum()) == ("phantom", 6 * 7 * 7 + 24)
    assert one.logits.shape == (4, (16 + 20) * 20 * 14 + 24)
    # The network tells the phantom's labels apart, so it is wrong in the soft tissue alone.
    assert ((one.log_odds(1.0) > 0) != one.infected).sum() == 24


def test_no_more_voxels_than_allowed_are_drawn_and_the_same_ones_again(tiny_bundle, monkeypatch):
    monkeypatch.setattr(calibration, "MOST_VOXELS", 500)
    bundle, engine = load_bundle(tiny_bundle), PointwiseEngine(pointwise_logits)
    first, again, other = (
        one
        for names in (["a", "b"], ["a"])
        for one in draw_lung_voxels(bundle, engine, [(name, phantom_case()) for name in names])
    )
    assert first.logits.shape == (4, 500)
    assert not np.array_equal(first.infected, again.infected)
    np.testing.assert_array_equal(first.logits, other.logits)


def test_a_case_without_such_voxels_is_left_out(tiny_bundle):
    all_background = PointwiseEngine(lambda tiles: pointwise_logits(np.full_like(tiles, 40 / 100)))
    nothing = phantom_case(np.zeros(phantom_labels().shape, np.bool_))
    assert draw_lung_voxels(load_bundle(tiny_bundle), all_background, [("empty", nothing)]) == []


def test_the_section_holds_what_was_fitted_and_what_was_only_measured():
    section = describe_calibration([drawn_case(2.5, seed=1), drawn_case(2.5, seed=2)], [drawn_case(2.5, seed=3)])
    assert section["temperature"] == pytest.approx(2.5, rel=0.03)
    assert (section["cases"], section["voxels"]) == (["case 1", "case 2"], 80_000)
    assert (section["held_out"]["cases"], section["held_out"]["voxels"]) == (["case 3"], 40_000)
    for part in (section, section["held_out"]):
        assert part["nll"]["after"] < part["nll"]["before"]
        assert part["ece"]["after"] < part["ece"]["before"]
    assert "on 1 held-out cases NLL" in calibration_in_a_line(section)
    assert json.loads(json.dumps(section)) == section


def test_the_card_says_two_lines_or_that_there_is_no_calibration():
    section = describe_calibration([drawn_case(2.5)], [])
    assert section["held_out"] is None
    fitted, measured = calibration_lines(section)
    assert f"temperature {section['temperature']:g}, fitted on the 1 cases" in fitted
    assert measured == "No other case was left to measure that on."
    assert calibration_lines(None) == ["The probability of infection is not calibrated."]


def test_where_no_temperature_can_be_fitted_the_reason_is_said(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    assert calibration_problem(bundle, ("a",)) is None
    assert "no case validated the training" in calibration_problem(bundle, ())
    averaged = replace(bundle, tile_plan=TilePlan(TILE_SHAPE, 0.5, average="probabilities"))
    assert "not their logits" in calibration_problem(averaged, ("a",))
    no_lungs = replace(bundle, classes=("background", "infection"))
    assert "labels no lungs" in calibration_problem(no_lungs, ("a",))


def test_a_case_that_was_learned_from_is_no_validation_case():
    bundle = load_bundle(default_bundle_path())
    training = {**bundle.card["training"], "train": ["a", "b"], "validation": ["b", "c"]}
    source = read_bundle(replace(bundle, card={**bundle.card, "training": training}), version="1.0")
    assert (source.cases.train, source.cases.validation) == (("a", "b"), ("c",))


def test_a_calibrated_bundle_gives_softmax_of_logits_by_temperature_and_the_same_labels(tiny_bundle):
    scan, engine = Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM)), PointwiseEngine(pointwise_logits)
    plain = Segmenter(load_bundle(tiny_bundle), engine).segment(scan)
    bundle = with_calibration(tiny_bundle, temperature=2.5)
    calibrated = Segmenter(bundle, engine, SegmentSettings(keep_probability=True)).segment(scan)
    np.testing.assert_array_equal(calibrated.labels, plain.labels)
    logits = pointwise_logits(clip_and_scale_hounsfield(phantom_hu(), bundle.preprocessing.scaling)[None, None])[0]
    expected = np.exp(logits[3] / 2.5) / np.exp(logits / 2.5).sum(axis=0)
    box = plain.box.slices
    np.testing.assert_allclose(calibrated.infection_probability[box] / 255, expected[box], atol=0.5 / 255 + 1e-4)
    report = build_report(calibrated, bundle, engine, describe_scan("ct.nii.gz", scan))
    assert report["uncertainty"]["probability"] == {"temperature": 2.5, "cases": 2}


def test_a_bundle_without_a_calibration_has_temperature_1(tiny_bundle):
    assert load_bundle(tiny_bundle).calibration == NOT_CALIBRATED == Calibration(temperature=1.0, cases=0)


@pytest.mark.parametrize("temperature", [0.05, 1, 20.0])
def test_temperatures_of_the_whole_range_are_read(tiny_bundle, temperature):
    assert with_calibration(tiny_bundle, temperature=temperature).calibration == Calibration(temperature, 2)


@pytest.mark.parametrize("temperature", [0, -1.0, 0.049, 20.1, float("nan"), float("inf"), "1", True, None, [1.0]])
def test_a_temperature_that_is_none_is_refused(tiny_bundle, temperature):
    with pytest.raises(BundleError, match="bundle.json"):
        with_calibration(tiny_bundle, temperature=temperature)


@pytest.mark.parametrize("cases", [[], None, 2, "ab", ["a", 2]])
def test_a_calibration_that_names_no_cases_is_refused(tiny_bundle, cases):
    with pytest.raises(BundleError, match=r"calibration\.cases must be a list of case names"):
        with_calibration(tiny_bundle, cases=cases)


def test_a_calibration_of_averaged_probabilities_is_refused(tiny_bundle):
    file = tiny_bundle / "bundle.json"
    description = json.loads(file.read_text())
    description["tile_plan"]["average"] = "probabilities"
    file.write_text(json.dumps(description))
    with pytest.raises(BundleError, match=r"calibration needs tile_plan\.average to be logits"):
        with_calibration(tiny_bundle)
