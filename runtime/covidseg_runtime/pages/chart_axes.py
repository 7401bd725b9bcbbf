"""The axes of the charts: where a value stands, where the ticks are, and which bins a histogram has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# A logarithm knows no 0: what is smaller than this has a place of its own before the axis' first decade.
SMALLEST_ON_LOG_AXIS = 0.1
_PLACE_OF_SMALL, _START_OF_DECADES = 0.04, 0.14
# (bins a step, bins a decade): of many scans finer ones say something.
_COARSE, _FINE, _MANY_SCANS = (2, 4), (5, 8), 500
_MOST_STEPS = 7


@dataclass(frozen=True)
class Tick:
    """A tick: its place as a share of the axis, and its text."""

    place: float
    text: str


@dataclass(frozen=True)
class Bin:
    """A bin of a histogram: [low, high), its edges as shares of the axis, and its text."""

    low: float
    high: float
    start: float
    stop: float
    text: str


@dataclass(frozen=True)
class LinearAxis:
    """Equal steps.

    Attributes:
        label: The quantity, with its unit.
        step: From tick to tick.
        first: Number of the first tick, whose value is `first` × `step`.
        last: Number of the last one.
    """

    label: str
    step: float
    first: int
    last: int

    @classmethod
    def of(cls, label: str, values: Sequence[float]) -> LinearAxis:
        """The axis on which all values lie, with round numbers at its ticks."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        step = _round_step((high - low) / _MOST_STEPS or abs(high) / _MOST_STEPS or 1.0)
        first, last = math.floor(low / step), math.floor(high / step) + 1
        return cls(label, step, first, last)

    def place(self, value: float) -> float:
        """Share of the axis at which a value stands."""
        return (value / self.step - self.first) / (self.last - self.first)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """One a step."""
        values = (number * self.step for number in range(self.first, self.last + 1))
        return tuple(Tick(self.place(value), _text(value)) for value in values)

    def bins(self, scans: int) -> tuple[Bin, ...]:
        """Two a step, five for many scans."""
        parts = _bins_for(scans)[0]
        edges = [(self.first + number / parts) * self.step for number in range((self.last - self.first) * parts + 1)]
        return _between(edges, self)


@dataclass(frozen=True)
class LogAxis:
    """Decades, and before them a place for 0 and what is smaller than 0.1, if there is any.

    Attributes:
        label: The quantity, with its unit.
        first: Power of ten at which the decades begin.
        last: Power of ten at which they end.
        start: Share of the axis at which they begin: 0 where nothing is small.
    """

    label: str
    first: int
    last: int
    start: float

    @classmethod
    def of(cls, label: str, values: Sequence[float]) -> LogAxis:
        """The axis on which all values (0 and above) lie."""
        logarithms = [math.log10(value) for value in values if value >= SMALLEST_ON_LOG_AXIS] or [0.0]
        start = _START_OF_DECADES if any(value < SMALLEST_ON_LOG_AXIS for value in values) else 0.0
        return cls(label, math.floor(min(logarithms)), math.floor(max(logarithms)) + 1, start)

    def place(self, value: float) -> float:
        """Share of the axis at which a value stands."""
        if value < SMALLEST_ON_LOG_AXIS:
            return _PLACE_OF_SMALL
        return self.start + (1 - self.start) * (math.log10(value) - self.first) / (self.last - self.first)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """One a decade."""
        small = (Tick(_PLACE_OF_SMALL, f"< {SMALLEST_ON_LOG_AXIS:g}"),) if self.start else ()
        powers = (10.0**power for power in range(self.first, self.last + 1))
        return (*small, *(Tick(self.place(value), _text(value)) for value in powers))

    def bins(self, scans: int) -> tuple[Bin, ...]:
        """Four a decade, eight for many scans, and one for what is small."""
        parts = _bins_for(scans)[1]
        small: tuple[Bin, ...] = ()
        if self.start:
            width = 2 * _PLACE_OF_SMALL
            small = (Bin(-math.inf, SMALLEST_ON_LOG_AXIS, 0.0, width, f"below {SMALLEST_ON_LOG_AXIS:g}"),)
        edges = [10.0 ** (self.first + number / parts) for number in range((self.last - self.first) * parts + 1)]
        return (*small, *_between(edges, self))


Axis = LinearAxis | LogAxis


def counts_axis(highest: int) -> LinearAxis:
    """An axis for whole numbers from 0 to `highest`, with a little room above."""
    step = max(1.0, _round_step(highest / 5 or 1.0))
    return LinearAxis("scans", step, 0, math.floor(highest / step) + 1)


def _bins_for(scans: int) -> tuple[int, int]:
    return _FINE if scans >= _MANY_SCANS else _COARSE


def _between(edges: Sequence[float], axis: Axis) -> tuple[Bin, ...]:
    return tuple(
        Bin(low, high, axis.place(low), axis.place(high), f"{_text(low)} to {_text(high)}")
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    )


def _round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, `step` or more."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _text(value: float) -> str:
    """A number in three digits, with the minus sign of print."""
    return f"{round(value, 10) + 0.0:.3g}".replace("-", "−") if abs(value) < 1000 else f"{value:.0f}".replace("-", "−")
