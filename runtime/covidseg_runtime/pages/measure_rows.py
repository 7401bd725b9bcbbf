"""The measures of a report, and how they changed since an earlier scan, as rows of tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from covidseg_runtime.measures import CONSOLIDATION_FROM_HU
from covidseg_runtime.pages.number_text import Cell, Row, cell, hounsfield, ml, percent, signed
from covidseg_runtime.severity import Lobe

SIDES = ("whole", "left", "right")
_NO_LUNG_LABELS = "unknown: the model labels no lungs"
_NO_LUNG = "no lung found"
_NO_INFECTION = "no infection found"
_THRESHOLD = f"{CONSOLIDATION_FROM_HU} HU".replace("-", "\N{MINUS SIGN}")


def lung_rows(measures: Mapping[str, Any]) -> tuple[Row, ...]:
    """Rows of both lungs, the left and the right.

    Args:
        measures: ``report["measures"]``.
    """
    why_no_share = _NO_LUNG_LABELS if measures["lung_volume_ml"]["whole"] is None else _NO_LUNG
    return (
        _row_of_sides(
            "Lung volume", measures["lung_volume_ml"], ml, _NO_LUNG_LABELS, "A lung includes the infection in it."
        ),
        _row_of_sides(
            "Infection",
            measures["infection_volume_ml"],
            ml,
            "unknown",
            "An infected voxel belongs to the lung whose voxels are nearest.",
        ),
        _row_of_sides(
            "Infected share of the lung",
            measures["infection_percent"],
            percent,
            why_no_share,
            "Infection / lung volume.",
        ),
    )


def whole_rows(measures: Mapping[str, Any], min_lesion_ml: float | None) -> tuple[Row, ...]:
    """Rows of both lungs together, each with its rule.

    Args:
        measures: ``report["measures"]``.
        min_lesion_ml: Infections smaller than this became lung again; None where it is not known.
    """
    infection_ml = measures["infection_volume_ml"]["whole"]
    ground_glass, consolidation = measures["ground_glass_ml"], measures["consolidation_ml"]
    smallest = "" if not min_lesion_ml else f" of {min_lesion_ml:g} mL or more"
    no_lung = _NO_LUNG_LABELS if measures["lung_volume_ml"]["whole"] is None else _NO_LUNG
    return (
        Row(
            "Ground glass",
            (Cell(ml(ground_glass)), _share(ground_glass, infection_ml)),
            f"Infected voxels below {_THRESHOLD}.",
        ),
        Row(
            "Consolidation",
            (Cell(ml(consolidation)), _share(consolidation, infection_ml)),
            f"Infected voxels of {_THRESHOLD} and above; vessels within an infection count too.",
        ),
        Row(
            "Mean density of the infection",
            (_hounsfield(measures["mean_infection_hu"], _NO_INFECTION),),
            "Over all infected voxels.",
        ),
        Row(
            "Mean density of the lungs",
            (_hounsfield(measures["mean_lung_hu"], no_lung),),
            "Lung and infection.",
        ),
        Row(
            "Lesions",
            (Cell(str(measures["lesion_count"])),),
            f"Infections{smallest} that hang together by side, edge or corner of a voxel.",
        ),
    )


def change_rows(follow_up: Mapping[str, Any]) -> tuple[Row, ...]:
    """Rows of earlier, this scan, change, and change in percent.

    Args:
        follow_up: What `FollowUp.describe` gave.
    """
    return (
        _change("Infection", follow_up["infection_ml"], ml, "mL"),
        _change("Infected share of the lung", follow_up["infection_percent"], percent, "points"),
        _change("Ground glass", follow_up["ground_glass_ml"], ml, "mL"),
        _change("Consolidation", follow_up["consolidation_ml"], ml, "mL"),
        _change("Lung volume", follow_up["lung_ml"], ml, "mL"),
    )


def lobe_rows(lobes: Sequence[Lobe]) -> tuple[Row, ...]:
    """Rows of volume, infection and share."""
    return tuple(
        Row(
            lobe.name,
            (
                Cell(ml(lobe.volume_ml)),
                Cell(ml(lobe.infection_ml)),
                _formed(lobe.infection_percent, percent, "no such lobe"),
            ),
        )
        for lobe in lobes
    )


def _row_of_sides(
    name: str, sides: Mapping[str, float | None], form: Callable[[float], str], reason: str, rule: str
) -> Row:
    return Row(name, tuple(_formed(sides[side], form, reason) for side in SIDES), rule)


def _formed(value: float | None, form: Callable[[float], str], reason: str) -> Cell:
    return cell(None if value is None else form(value), reason)


def _share(part_ml: float, infection_ml: float) -> Cell:
    return cell(percent(100 * part_ml / infection_ml) if infection_ml else None, _NO_INFECTION)


def _hounsfield(value: float | None, reason: str) -> Cell:
    return _formed(value, hounsfield, reason)


def _change(name: str, change: Mapping[str, float | None], form: Callable[[float], str], unit: str) -> Row:
    delta, relative = change["delta"], change.get("delta_percent")
    in_points = unit == "points"
    why_no_percent = "a share: see the points" if in_points else "none before" if change["prior"] == 0 else "unknown"
    return Row(
        name,
        (
            _formed(change["prior"], form, "unknown"),
            _formed(change["current"], form, "unknown"),
            cell(None if delta is None else signed(delta, unit), "unknown"),
            cell(None if relative is None or in_points else signed(relative, "%"), why_no_percent),
        ),
    )
