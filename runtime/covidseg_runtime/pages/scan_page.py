"""The page of one scan: its slices with what was found, the measures, and everything needed to doubt them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.measures import Sides
from covidseg_runtime.pages.lesion_list import Lesion, list_lesions
from covidseg_runtime.pages.measure_rows import change_rows, lobe_rows, lung_rows, whole_rows
from covidseg_runtime.pages.number_text import hounsfield, ml, percent, signed
from covidseg_runtime.pages.page import data_url, render
from covidseg_runtime.pages.report_facts import (
    engine_facts,
    model_facts,
    registration_facts,
    repeat_command,
    scan_facts,
    timing_facts,
)
from covidseg_runtime.pages.viewer_volumes import (
    HIGHEST_HU,
    LOWEST_HU,
    ORIENTATION,
    ViewerVolumes,
    make_viewer_volumes,
)
from covidseg_runtime.preview import LABEL_COLOURS, LOWER_HU, UPPER_HU, render_preview
from covidseg_runtime.severity import Severity, measure_lobes, score_severity
from covidseg_runtime.volume import MODEL_ORIENTATION, Volume, to_orientation

MOST_LESIONS = 20
SOFT_TISSUE_HU = (-160.0, 240.0)  # level 40, width 400


def render_scan_page(
    volume: Volume,
    labels: NDArray[np.uint8],
    report: Mapping[str, Any],
    follow_up: Mapping[str, Any] | None = None,
    lobes: NDArray[np.uint8] | None = None,
) -> bytes:
    """Make the page.

    Args:
        volume: The scan in HU, (X, Y, Z).
        labels: (X, Y, Z) on the scan's grid.
        report: What `covidseg_runtime.report.build_report` gave for them.
        follow_up: What ``FollowUp.describe`` gave for an earlier scan and this one.
        lobes: (X, Y, Z) on the scan's grid, the values of `covidseg_runtime.severity.LOBES`.

    Returns:
        One HTML file, UTF-8; the same input gives the same bytes.

    Raises:
        VolumeError: If the labels have another shape than the scan.
        EngineError: If Pillow is not installed.
    """
    volumes = make_viewer_volumes(volume, labels)
    lesions = list_lesions(volume, labels, MOST_LESIONS)
    measures = report["measures"]
    measured_lobes = () if lobes is None else measure_lobes(volume, labels, lobes)
    severity = score_severity(Sides(**measures["infection_percent"]), measured_lobes)
    return render(
        "scan.html",
        report=report,
        mosaic=data_url(render_preview(volume, labels), "image/png"),
        viewer=_viewer_settings(volume, volumes, _start_mm(volume, lesions)),
        volumes=volumes,
        lung_rows=lung_rows(measures),
        whole_rows=whole_rows(measures, (report.get("settings") or {}).get("min_lesion_ml")),
        lesions=lesions,
        severity=severity,
        cards=_cards(report, severity),
        facts=_Facts.of(report),
        follow_up=follow_up,
        change_rows=() if follow_up is None else change_rows(follow_up),
        ml=ml,
        percent=percent,
        hounsfield=hounsfield,
        signed=signed,
        slice_of=partial(slice_from_feet, volume),
        most_lesions=MOST_LESIONS,
        lobe_rows=lobe_rows(severity.lobes),
        registration_facts=() if follow_up is None else registration_facts(follow_up),
        niivue_licence=(Path(__file__).parent / "niivue" / "LICENSE").read_text(encoding="utf-8"),
    )


def slice_from_feet(volume: Volume, center_mm: Sequence[float]) -> str:
    """The axial slice nearest to a place, counted from the feet: "96 of 200".

    Millimetres would mislead: the zero of many scans lies outside the patient.
    """
    scan = to_orientation(volume, MODEL_ORIENTATION)
    place = np.linalg.inv(scan.affine) @ (*center_mm, 1.0)
    count = scan.shape[0]
    return f"{int(np.clip(np.rint(place[0]), 0, count - 1)) + 1} of {count}"


@dataclass(frozen=True)
class Card:
    """A number at a glance: what it is, its value, and what must be known with it."""

    what: str
    value: str
    more: str


@dataclass(frozen=True)
class _Facts:
    """Names and values on how the result came about, and how to repeat it."""

    scan: tuple[tuple[str, str], ...]
    model: tuple[tuple[str, str], ...]
    engine: tuple[tuple[str, str], ...]
    timings: tuple[tuple[str, str], ...]
    command: str

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> _Facts:
        return cls(
            scan_facts(report), model_facts(report), engine_facts(report), timing_facts(report), repeat_command(report)
        )


def _cards(report: Mapping[str, Any], severity: Severity) -> tuple[Card, ...]:
    measures = report["measures"]
    share, infection = measures["infection_percent"]["whole"], measures["infection_volume_ml"]["whole"]
    grade = severity.ct_grade
    return (
        Card(
            "Infected share of the lungs",
            "unknown" if share is None else percent(share),
            "" if share is None else f"of {ml(measures['lung_volume_ml']['whole'])}",
        ),
        Card("Infection", ml(infection), _range(report)),
        Card(
            "Ground glass / consolidation",
            f"{measures['ground_glass_ml']:.1f} / {ml(measures['consolidation_ml'])}",
            f"{measures['lesion_count']} lesion{'' if measures['lesion_count'] == 1 else 's'}",
        ),
        Card(
            "CT grade",
            "not given" if grade.value is None else f"CT-{grade.value}",
            grade.reason or "by the share of the worse lung",
        ),
    )


def _range(report: Mapping[str, Any]) -> str:
    found = report["uncertainty"]["infection_volume_ml"]
    if found is None:
        return "range unknown: fewer than five cases were held out"
    if not found["high_ml"]:  # that of nothing, scaled from 0, would say it is sure
        return "no range: it is a multiple of what was found"
    low, high = f"{found['low_ml']:.1f}", ml(found["high_ml"])
    return f"{low} to {high}, as {found['share']:.0%} of {found['cases']} held-out cases"


def _start_mm(volume: Volume, lesions: tuple[Lesion, ...]) -> list[float]:
    """Where the viewer begins: in the largest lesion, else in the middle of the scan."""
    if lesions:
        return list(lesions[0].center_mm)
    middle = (np.array(volume.shape) - 1) / 2
    place: list[float] = (volume.affine @ (*middle, 1.0))[:3].round(1).tolist()
    return place


def _viewer_settings(volume: Volume, volumes: ViewerVolumes, start_mm: list[float]) -> dict[str, Any]:
    """What the script of the page reads."""
    return {
        "scan": base64.b64encode(volumes.scan).decode("ascii"),
        "labels": base64.b64encode(volumes.labels).decode("ascii"),
        "colours": {str(label): list(colour) for label, colour in LABEL_COLOURS.items()},
        "windows": {"lung": [LOWER_HU, UPPER_HU], "soft": list(SOFT_TISSUE_HU)},
        "range_hu": [LOWEST_HU, HIGHEST_HU],
        "slices": list(to_orientation(volume, ORIENTATION).shape),
        "start_mm": start_mm,
    }
