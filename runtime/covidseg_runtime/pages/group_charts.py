"""Charts of a group as SVG within a page: no script, no network, colours from the page's style sheet.

Each has axes with units, a title, and its content in words for who does not see it. Scans without warnings are filled
circles, those with warnings open ones, outliers triangles; a bar is stacked in the same three ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from markupsafe import Markup, escape

from covidseg_runtime.pages.chart_axes import Axis, Bin, counts_axis

Standing = Literal["plain", "warned", "outlier"]
STANDINGS: tuple[Standing, ...] = ("plain", "warned", "outlier")
# Above so many scans only outliers are links with a name: a page has to stay small enough to be opened.
MOST_LINKED_POINTS = 1000

_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 436, 34, 228
_QUARTILES_Y = 22  # where median and quartiles of a histogram are drawn
_LABEL_Y = 270


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: What it shows.
        svg: The picture.
        caption: What it says in numbers.
    """

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Mark:
    """One scan in a chart.

    Attributes:
        name: Of the scan.
        standing: How it is drawn.
        x: Along the horizontal axis.
        y: Along the vertical axis; of no meaning in a histogram.
        link: Where its page is, or None.
    """

    name: str
    standing: Standing
    x: float
    y: float = 0.0
    link: str | None = None


def draw_histogram(name: str, title: str, axis: Axis, marks: Sequence[Mark]) -> Chart:
    """How often values occur, with median and quartiles above the bars.

    Args:
        name: Unique within the page, for ids.
        title: What is counted.
        axis: Of the values.
        marks: One a scan; `x` is the value.
    """
    table = [(bin_, _count(bin_, marks)) for bin_ in axis.bins(len(marks))]
    counts = counts_axis(max((sum(of_bin) for _, of_bin in table), default=0))
    bars = Markup("").join(_bar(bin_, of_bin, counts) for bin_, of_bin in table if sum(of_bin))
    quartiles = np.quantile([mark.x for mark in marks], (0.25, 0.5, 0.75)) if marks else None
    spread = Markup("") if quartiles is None else _quartiles([axis.place(float(value)) for value in quartiles])
    words = "; ".join(f"{bin_.text}: {_scans(sum(of_bin))}" for bin_, of_bin in table if sum(of_bin))
    svg = _frame(name, title, f"{axis.label}. {words or 'no scan'}.", _axes(axis, counts) + bars + spread)
    return Chart(title, svg, describe_spread(axis.label, [mark.x for mark in marks]))


def draw_scatter(name: str, title: str, axes: tuple[Axis, Axis], marks: Sequence[Mark], *, diagonal: str = "") -> Chart:
    """One measure against another, a mark a scan.

    Args:
        name: Unique within the page, for ids.
        title: What is compared.
        axes: The horizontal and the vertical one.
        marks: One a scan.
        diagonal: What to write at the line where both are equal; "" draws none.
    """
    horizontal, vertical = axes
    ordered = sorted(marks, key=lambda mark: STANDINGS.index(mark.standing))
    points = Markup("").join(
        _points(list(same), axes, linked=len(marks) <= MOST_LINKED_POINTS or standing == "outlier")
        for standing, same in groupby(ordered, key=lambda mark: mark.standing)
    )
    line = _diagonal(axes, diagonal) if diagonal else Markup("")
    words = f"{vertical.label} against {horizontal.label} of {_scans(len(marks))}, {_outliers(marks)}."
    svg = _frame(name, title, words, _axes(horizontal, vertical) + line + points)
    return Chart(title, svg, f"{_scans(len(marks))}, {_outliers(marks)}.")


def describe_spread(label: str, values: Sequence[float]) -> str:
    """Number, median and quartiles (interpolated) in a sentence."""
    if not values:
        return "No scan has this number."
    low, median, high = (_short(float(value)) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return f"{label[0].upper()}{label[1:]}: median {median}, quartiles {low} and {high}, of {_scans(len(values))}."


def _frame(name: str, title: str, words: str, content: Markup) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="group" aria-labelledby="{name}-title {name}-words">'
        '<title id="{name}-title">{title}</title><desc id="{name}-words">{words}</desc>{content}</svg>'
    ).format(width=_WIDTH, height=_HEIGHT, name=name, title=title, words=words, content=content)


def _axes(horizontal: Axis, vertical: Axis) -> Markup:
    """Grid, ticks and names of both axes; what is said of them in words needs no reading aloud."""
    parts = []
    for tick in vertical.ticks:
        y = _y(tick.place)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 7}" y="{y + 4:.1f}">{escape(tick.text)}</text>')
    for tick in horizontal.ticks:
        x = _x(tick.place)
        parts.append(f'<path class="axis" d="M{x:.1f} {_BOTTOM}v5"/>')
        parts.append(f'<text class="tick middle" x="{x:.1f}" y="{_BOTTOM + 19}">{escape(tick.text)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>')
    middle, turned = (_LEFT + _RIGHT) / 2, f"translate(14 {(_TOP + _BOTTOM) / 2:.0f}) rotate(-90)"
    parts.append(f'<text class="label middle" x="{middle:.0f}" y="{_LABEL_Y}">{escape(horizontal.label)}</text>')
    parts.append(f'<text class="label middle" transform="{turned}">{escape(vertical.label)}</text>')
    return Markup('<g aria-hidden="true">{}</g>').format(Markup("".join(parts)))  # noqa: S704 - escaped above


def _bar(bin_: Bin, counts: Sequence[int], axis: Axis) -> Markup:
    left, right = _x(bin_.start) + 0.5, _x(bin_.stop) - 0.5
    parts, below = [], 0
    for standing, count in zip(STANDINGS, counts, strict=True):
        top, bottom = _y(axis.place(below + count)), _y(axis.place(below))
        below += count
        if count:
            parts.append(
                f'<rect class="bar {standing}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                f'height="{bottom - top:.1f}"/>'
            )
    told = f"{bin_.text}: {_scans(below)}"
    return Markup("<g><title>{}</title>{}</g>").format(told, Markup("".join(parts)))  # noqa: S704 - numbers


def _count(bin_: Bin, marks: Sequence[Mark]) -> tuple[int, ...]:
    """Scans of each standing in a bin."""
    within = [mark.standing for mark in marks if bin_.low <= mark.x < bin_.high]
    return tuple(within.count(standing) for standing in STANDINGS)


def _quartiles(places: Sequence[float]) -> Markup:
    low, median, high = (_x(place) for place in places)
    return Markup(
        '<g aria-hidden="true"><path class="quartiles" d="M{:.1f} {y}H{:.1f}"/>'
        '<path class="median" d="M{:.1f} {top}v12"/></g>'
    ).format(low, high, median, y=_QUARTILES_Y, top=_QUARTILES_Y - 6)


def _points(marks: Sequence[Mark], axes: tuple[Axis, Axis], *, linked: bool) -> Markup:
    """Marks of one standing."""
    horizontal, vertical = axes
    places = [(_x(horizontal.place(mark.x)), _y(vertical.place(mark.y))) for mark in marks]
    standing = marks[0].standing
    if not linked:
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        return Markup('<path class="dots {}" d="{}"/>').format(standing, dots)
    return Markup("").join(_point(mark, *place, axes) for mark, place in zip(marks, places, strict=True))


def _point(mark: Mark, x: float, y: float, axes: tuple[Axis, Axis]) -> Markup:
    horizontal, vertical = axes
    told = f"{mark.name}: {mark.x:.4g} ({horizontal.label}), {mark.y:.4g} ({vertical.label})"
    if mark.standing == "outlier":
        shape = Markup('<path class="mark outlier" d="M{:.1f} {:.1f}l5.5 9.5h-11z"><title>{}</title></path>').format(
            x, y - 6, told
        )
    else:
        shape = Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
            mark.standing, x, y, told
        )
    return shape if mark.link is None else Markup('<a href="{}" tabindex="-1">{}</a>').format(mark.link, shape)


def _diagonal(axes: tuple[Axis, Axis], text: str) -> Markup:
    """The line on which both values are equal, as far as both axes reach."""
    horizontal, vertical = axes
    ends = [
        value
        for value in (10.0 ** (number / 10) for number in range(-10, 60))
        if 0 <= horizontal.place(value) <= 1 and 0 <= vertical.place(value) <= 1
    ]
    if not ends:
        return Markup("")
    places = [(_x(horizontal.place(value)), _y(vertical.place(value))) for value in (ends[0], ends[-1])]
    (x0, y0), (x1, y1) = places
    return Markup(
        '<g aria-hidden="true"><path class="diagonal" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>'
        '<text class="tick" x="{:.1f}" y="{:.1f}">{}</text></g>'
    ).format(x0, y0, x1, y1, x0 + (x1 - x0) / 3 + 10, y0 + (y1 - y0) / 3 + 12, text)


def _short(value: float) -> str:
    return (f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}").replace("-", "−")


def _x(place: float) -> float:
    return _LEFT + place * (_RIGHT - _LEFT)


def _y(place: float) -> float:
    return _BOTTOM - place * (_BOTTOM - _TOP)


def _scans(count: int) -> str:
    return f"{count} scan" if count == 1 else f"{count} scans"


def _outliers(marks: Sequence[Mark]) -> str:
    count = sum(mark.standing == "outlier" for mark in marks)
    return f"{count} of them outliers" if count != 1 else "one of them an outlier"
