"""The phantom with its labels and report, and a comparison with an earlier scan that is made up by hand."""

from __future__ import annotations

from typing import Any

from phantom import PHANTOM_SPACING_MM, phantom_hu, pointwise_logits, spl_affine

from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.report import build_report, describe_scan
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.volume import Volume


def phantom_volume() -> Volume:
    """The phantom as a volume, orientation SPL."""
    return Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM))


def phantom_report(bundle: ModelBundle, name: str = "ct.nii.gz") -> dict[str, Any]:
    """The report on the phantom."""
    engine = PointwiseEngine(pointwise_logits)
    volume = phantom_volume()
    return build_report(Segmenter(bundle, engine).segment(volume), bundle, engine, describe_scan(name, volume))


def made_up_follow_up() -> dict[str, Any]:
    """A comparison as JSON: one lesion has gone, one has come, two became one that grew."""
    return {
        "schema_version": 1,
        "days": 12,
        "infection_ml": {"prior": 40.0, "current": 50.0, "delta": 10.0, "delta_percent": 25.0},
        "infection_percent": {"prior": 1.0, "current": 1.25, "delta": 0.25},
        "ground_glass_ml": {"prior": 0.0, "current": 20.0, "delta": 20.0, "delta_percent": None},
        "consolidation_ml": {"prior": None, "current": None, "delta": None, "delta_percent": None},
        "lung_ml": {"prior": 4000.0, "current": 2800.0, "delta": -1200.0, "delta_percent": -30.0},
        "lesions": {
            "new": {"count": 1, "current_ml": 3.0},
            "resolved": {"count": 1, "prior_ml": 6.0},
            "persistent": {"count": 1, "prior_ml": 34.0, "current_ml": 47.0, "delta_ml": 13.0},
        },
        "lesion_list": [
            {
                "change": "persistent",
                "prior_ml": 34.0,
                "current_ml": 47.0,
                "delta_ml": 13.0,
                "prior_lesions": 2,
                "current_lesions": 1,
                "center_mm": [-15.0, -3.0, -228.0],
            },
            {
                "change": "resolved",
                "prior_ml": 6.0,
                "current_ml": 0.0,
                "delta_ml": -6.0,
                "prior_lesions": 1,
                "current_lesions": 0,
                "center_mm": [10.0, 0.0, -250.0],
            },
            {
                "change": "new",
                "prior_ml": 0.0,
                "current_ml": 3.0,
                "delta_ml": 3.0,
                "prior_lesions": 0,
                "current_lesions": 1,
                "center_mm": [10.0, 0.0, -900.0],
            },
        ],
        "registration": {"method": "affine of the lungs", "lung_dice": 0.9512, "translation_mm": [3.0, 4.0, 12.0]},
        "prior": {"file": "earlier.nii.gz"},
        "warnings": ["The lungs differ by 30 %: another breath."],
        "rule": "Lesions that touch are one.",
    }
