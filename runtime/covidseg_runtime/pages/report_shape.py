"""What a report must hold for a page: every key that is read, and of which kind its value is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from covidseg_runtime.pages.measure_rows import SIDES


@dataclass(frozen=True)
class _Kind:
    """A value that holds no others: what it is called, and its types."""

    name: str
    types: tuple[type, ...]


@dataclass(frozen=True)
class _Each:
    """A list, or a section of any keys, whose values are all of one shape; as many as `length`, if that is given."""

    container: type
    value: Any
    length: int | None = None


@dataclass(frozen=True)
class _OrNull:
    """A shape, or null; the key may be missing if `or_nothing`."""

    shape: Any
    or_nothing: bool = False


_TEXT, _COUNT, _NUMBER = _Kind("text", (str,)), _Kind("a whole number", (int,)), _Kind("a number", (int, float))
_SIDES = dict.fromkeys(SIDES, _OrNull(_NUMBER))
_RANGE = {"low_ml": _NUMBER, "high_ml": _NUMBER, "share": _NUMBER, "cases": _COUNT}
_REPORT: dict[str, Any] = {
    "software": {"name": _TEXT, "version": _TEXT},
    "model": {"name": _TEXT, "version": _TEXT, "files": _Each(dict, _TEXT)},
    "engine": {
        **dict.fromkeys(("name", "precision", "quality"), _TEXT),
        **dict.fromkeys(("provider", "device"), _OrNull(_TEXT)),
        "threads": _OrNull(_COUNT),
        "step": _NUMBER,
        "tiles": _COUNT,
        "tile_shape": _Each(list, _COUNT, 3),
    },
    "scan": {
        "file": _TEXT,
        "shape": _Each(list, _COUNT, 3),
        "spacing_mm": _Each(list, _NUMBER, 3),
        "orientation": _TEXT,
        "window_hu": _OrNull(_Each(list, _NUMBER, 2)),
    },
    "measures": {
        **dict.fromkeys(("lung_volume_ml", "infection_volume_ml", "infection_percent"), _SIDES),
        **dict.fromkeys(("ground_glass_ml", "consolidation_ml"), _NUMBER),
        **dict.fromkeys(("mean_lung_hu", "mean_infection_hu"), _OrNull(_NUMBER)),
        "lesion_count": _COUNT,
    },
    "uncertainty": {
        "infection_volume_ml": _OrNull(_RANGE),
        "probability": {"temperature": _NUMBER, "cases": _COUNT},
    },
    "warnings": _Each(list, _TEXT),
    "timings_s": _Each(dict, _NUMBER),
    "settings": _OrNull({"min_lesion_ml": _NUMBER}, or_nothing=True),
}


def find_fault(report: Mapping[str, Any]) -> str | None:
    """The first place where a report is not what `covidseg segment` writes, in words; None if a page can be made of it.

    Args:
        report: Parsed JSON. Keys that no page reads may hold anything.
    """
    return _fault(dict(report), _REPORT, "the report")


def _fault(value: object, shape: Any, place: str) -> str | None:  # noqa: ANN401 - shapes hold shapes
    match shape:
        case _OrNull():
            return None if value is None else _fault(value, shape.shape, place)
        case _Kind():
            fits = isinstance(value, shape.types) and not isinstance(value, bool)
            return None if fits else _unlike(value, shape.name, place)
        case _Each():
            return _fault_of_each(value, shape, place)
    return _fault_of_section(value, shape, place)


def _fault_of_each(value: object, shape: _Each, place: str) -> str | None:
    if not isinstance(value, dict | list) or not isinstance(value, shape.container):
        return _unlike(value, "a list" if shape.container is list else "a section", place)
    if shape.length is not None and len(value) != shape.length:
        return _unlike(value, f"a list of {shape.length}", place)
    values = value.values() if isinstance(value, dict) else value
    return next((fault for one in values if (fault := _fault(one, shape.value, f"a value of {place}"))), None)


def _fault_of_section(value: object, shape: Mapping[str, Any], place: str) -> str | None:
    if not isinstance(value, dict):
        return _unlike(value, "a section", place)
    for key, wanted in shape.items():
        name = f"{key} of {place}"
        if key in value:
            fault = _fault(value[key], wanted, name)
        else:
            fault = None if isinstance(wanted, _OrNull) and wanted.or_nothing else f"{name} is missing"
        if fault is not None:
            return fault
    return None


def _unlike(value: object, expected: str, place: str) -> str:
    if isinstance(value, dict | list):
        given = "a section" if isinstance(value, dict) else f"a list of {len(value)}"
    else:
        given = "null" if value is None else repr(value)[:40]
    return f"{place} is {given}, {expected} is expected"
