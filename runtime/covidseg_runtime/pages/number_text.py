"""Numbers as text on a page: rounded to what they are worth, and a sentence where there is none."""

from __future__ import annotations

from dataclasses import dataclass

_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Cell:
    """What stands in one cell of a table.

    Attributes:
        text: A number with its unit, or why there is none.
        known: Whether it is a number.
    """

    text: str
    known: bool = True


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: What is measured.
        cells: Its values.
        rule: How it is measured; may be empty.
    """

    name: str
    cells: tuple[Cell, ...]
    rule: str = ""


def ml(value: float) -> str:
    """A volume: whole mL from 1000 on, otherwise tenths; what is more than nothing never looks like it."""
    return f"{value:.0f} mL" if value >= 1000 else f"{_tenths(value)} mL"


def percent(value: float) -> str:
    """A share, in tenths of a percent."""
    return f"{_tenths(value)} %"


def hounsfield(value: float) -> str:
    """HU, whole."""
    return f"{value:.0f} HU".replace("-", _MINUS)


def signed(value: float, unit: str) -> str:
    """A difference with its sign, as `ml` rounds; ``unit`` follows."""
    digits = 0 if abs(value) >= 1000 else 1
    rounded = round(value, digits)
    sign = "+" if rounded > 0 else _MINUS if rounded < 0 else ""
    return f"{sign}{abs(rounded):.{digits}f} {unit}"


def cell(text: str | None, reason: str) -> Cell:
    """A number's text, or the reason why it is missing."""
    return Cell(reason, known=False) if text is None else Cell(text)


def _tenths(value: float) -> str:
    return "< 0.1" if 0 < value < 0.05 else f"{value:.1f}"
