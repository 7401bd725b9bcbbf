"""What a report says of how it came about, as names and values, and the command that repeats it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from typing import Any

Facts = tuple[tuple[str, str], ...]

_SERIES_UID = re.compile(r"[0-9]+(\.[0-9]+)+")


def scan_facts(report: Mapping[str, Any]) -> Facts:
    """The scan as it was read."""
    scan = report["scan"]
    shape = " × ".join(str(n) for n in scan["shape"])
    spacing = " × ".join(f"{mm:g}" for mm in scan["spacing_mm"])
    facts = [("Voxels", shape), ("Voxel size", f"{spacing} mm"), ("Orientation of the file", scan["orientation"])]
    if scan["window_hu"] is not None:
        low, high = scan["window_hu"]
        facts.append(("Given as", f"grey levels of the window from {low:g} to {high:g} HU; what lay outside is lost"))
    return tuple(facts)


def model_facts(report: Mapping[str, Any]) -> Facts:
    """The model, with the SHA-256 of each of its files."""
    model = report["model"]
    files = ((f"SHA-256 of {name}", sha256) for name, sha256 in model["files"].items())
    return (("Model", f"{model['name']} {model['version']}"), *files)


def engine_facts(report: Mapping[str, Any]) -> Facts:
    """What computed, and how much work was done."""
    engine, software = report["engine"], report["software"]
    computed = [engine["name"], engine["precision"], engine["provider"], engine["device"]]
    threads = engine["threads"]
    if threads is not None:
        computed.append(f"{threads} threads")
    tiles = " × ".join(str(n) for n in engine["tile_shape"])
    facts = [
        ("Software", f"{software['name']} {software['version']}"),
        ("Engine", ", ".join(str(fact) for fact in computed if fact is not None)),
        ("Quality", f"{engine['quality']} (step {engine['step']:g}; {engine['tiles']} tiles of {tiles} voxels)"),
    ]
    settings = report.get("settings")
    if settings is not None:
        facts.append(("Smallest lesion kept", f"{settings['min_lesion_ml']:g} mL"))
    return tuple(facts)


def timing_facts(report: Mapping[str, Any]) -> Facts:
    """Seconds of each step, and their sum."""
    timings = report["timings_s"]
    steps = tuple((step.replace("_", " "), f"{seconds:.2f} s") for step, seconds in timings.items())
    return (*steps, ("sum", f"{sum(timings.values()):.2f} s"))


def registration_facts(follow_up: Mapping[str, Any]) -> Facts:
    """How the two scans were brought together, and how well."""
    registration = follow_up["registration"]
    facts = [("Brought together by", registration["method"])]
    facts.append(("Overlap of the lungs", f"Dice {registration['lung_dice']:.3f} after the affine part"))
    if (deformed := registration.get("deformed_lung_dice")) is not None:
        facts.append(("", f"Dice {deformed:.3f} after the deformation"))
    facts.append(("Shift", f"{math.hypot(*registration['translation_mm']):.0f} mm"))
    if (largest := registration.get("largest_displacement_mm")) is not None:
        facts.append(("Largest deformation", f"{largest:.0f} mm"))
    return tuple(facts)


def repeat_command(report: Mapping[str, Any]) -> str:
    """The command line that segments the scan again in the same way."""
    engine, settings = report["engine"], report.get("settings") or {}
    name = report["scan"]["file"]
    # Of DICOM the report holds the series, as the folder is often called after the patient.
    scan = ["FOLDER", "--series", name] if _SERIES_UID.fullmatch(name) else [shlex.quote(name)]
    options = {
        "--model": report["model"]["name"],
        "--engine": engine["name"],
        "--device": engine["device"],
        "--precision": engine["precision"],
        "--quality": engine["quality"],
        "--threads": engine["threads"],
        "--min-lesion-ml": settings.get("min_lesion_ml"),
    }
    words = [f"{option} {shlex.quote(str(value))}" for option, value in options.items() if value is not None]
    if report["scan"]["window_hu"] is not None:
        low, high = report["scan"]["window_hu"]
        words.append(f"--window={low:g},{high:g}")
    return " ".join(("covidseg segment", *scan, *words))
