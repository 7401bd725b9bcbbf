"""The range of a volume is that of the held-out cases, or there is none."""

from dataclasses import replace
from types import MappingProxyType

import pytest

from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.volume_range import VolumeRange, volume_range


def with_held_out(bundle, pairs):
    held_out = [{"case": str(n), "reference_ml": ref, "predicted_ml": found} for n, (ref, found) in enumerate(pairs)]
    return replace(bundle, card=MappingProxyType({**bundle.card, "metrics": {"held_out": held_out}}))


def test_a_volume_is_scaled_by_the_middle_of_the_ratios(tiny_bundle):
    bundle = with_held_out(load_bundle(tiny_bundle), [(50, 100), (75, 100), (100, 100), (125, 100), (150, 100)])
    # Percentiles 10 and 90 of 0.5, 0.75, 1, 1.25, 1.5, interpolated: 0.6 and 1.4.
    assert volume_range(bundle, 200.0) == VolumeRange(pytest.approx(120.0), pytest.approx(280.0), 5)


@pytest.mark.parametrize(
    "pairs", [[], [(100, 100)] * 4, [*[(100, 100)] * 4, (0, 100)], [*[(100, 100)] * 4, (100, 0), (None, 100)]]
)
def test_few_cases_or_cases_without_a_ratio_give_no_range(tiny_bundle, pairs):
    assert volume_range(with_held_out(load_bundle(tiny_bundle), pairs), 200.0) is None


@pytest.mark.parametrize("metrics", [{}, {"held_out": None}, {"held_out": "none"}, {"held_out": [3]}])
def test_a_card_of_another_form_gives_no_range(tiny_bundle, metrics):
    bundle = load_bundle(tiny_bundle)
    assert volume_range(replace(bundle, card=MappingProxyType({"metrics": metrics})), 200.0) is None
