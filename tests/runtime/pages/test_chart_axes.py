"""Axes of the charts: round ticks, values at their places, bins without gap."""

from __future__ import annotations

import math

import pytest

from covidseg_runtime.pages.chart_axes import Axis, LinearAxis, LogAxis, counts_axis


def test_a_linear_axis_has_round_steps_around_its_values() -> None:
    axis = LinearAxis.of("infected lung, %", [0.0, 41.0])
    # 41 / 7 is 5.9, so the step is 10: 0, 10, … 50.
    assert [tick.text for tick in axis.ticks] == ["0", "10", "20", "30", "40", "50"]
    assert [tick.place for tick in axis.ticks] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert axis.place(25.0) == pytest.approx(0.5)


def test_a_linear_axis_of_negative_values_writes_the_minus_sign_of_print() -> None:
    axis = LinearAxis.of("mean, HU", [-613.0, -189.0])
    assert [tick.text for tick in axis.ticks] == ["−700", "−600", "−500", "−400", "−300", "−200", "−100"]
    assert axis.place(-400.0) == pytest.approx(0.5)


def test_a_log_axis_has_a_place_for_zero_before_its_decades() -> None:
    axis = LogAxis.of("infection, mL", [0.0, 0.7, 150.0])
    assert [tick.text for tick in axis.ticks] == ["< 0.1", "0.1", "1", "10", "100", "1000"]
    assert axis.place(0.0) == axis.place(0.09) == axis.ticks[0].place < axis.ticks[1].place
    assert axis.place(1000.0) == 1.0
    # In the middle between two decades stands their geometric mean.
    assert axis.place(math.sqrt(10)) == pytest.approx((axis.place(1.0) + axis.place(10.0)) / 2)


def test_a_log_axis_without_small_values_begins_at_its_first_decade() -> None:
    axis = LogAxis.of("infection, mL", [20.0, 150.0])
    assert [(tick.text, tick.place) for tick in axis.ticks] == [("10", 0.0), ("100", 0.5), ("1000", 1.0)]


@pytest.mark.parametrize(
    "values", [[], [0.0], [5.0], [-3.0], [0.3, 0.3], [0.0, 1e-9, 12345.6], [1000.0], [10.0, 100.0]]
)
@pytest.mark.parametrize("kind", [LinearAxis, LogAxis])
@pytest.mark.parametrize("scans", [3, 5000])
def test_every_value_is_on_the_axis_and_in_exactly_one_bin(kind: type, values: list[float], scans: int) -> None:
    if kind is LogAxis and values == [-3.0]:
        values = [3.0]  # volumes are not negative
    axis: Axis = kind.of("mL", values)
    bins = axis.bins(scans)
    for value in values:
        assert 0 <= axis.place(value) <= 1
        assert sum(bin_.low <= value < bin_.high for bin_ in bins) == 1
    decades = [bin_ for bin_ in bins if bin_.low > -math.inf]  # what is small has its own bin, apart from the others
    assert [bin_.high for bin_ in decades[:-1]] == pytest.approx([bin_.low for bin_ in decades[1:]])
    assert all(bin_.start < bin_.stop <= 1 + 1e-9 for bin_ in bins)


def test_many_scans_have_finer_bins() -> None:
    axis = LinearAxis.of("mL", [0.0, 50.0])
    assert len(axis.bins(5000)) > 2 * len(axis.bins(30))


@pytest.mark.parametrize(
    ("highest", "texts"), [(0, ["0", "1"]), (3, ["0", "1", "2", "3", "4"]), (13, ["0", "5", "10", "15"])]
)
def test_counts_have_whole_ticks_and_room_above(highest: int, texts: list[str]) -> None:
    axis = counts_axis(highest)
    assert [tick.text for tick in axis.ticks] == texts
    assert axis.place(highest) < 1
