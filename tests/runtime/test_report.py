"""The report is plain JSON and says what the result must not be used for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from phantom import PHANTOM_SPACING_MM, phantom_hu, pointwise_logits, spl_affine

from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.report import build_report, describe_scan, plain_json
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.volume import Volume


def test_the_report_is_json_and_states_its_limits(tiny_bundle: Path) -> None:
    bundle, engine = load_bundle(tiny_bundle), PointwiseEngine(pointwise_logits)
    volume = Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM))
    segmentation = Segmenter(bundle, engine).segment(volume)
    report = build_report(segmentation, bundle, engine, describe_scan("ct.nii.gz", volume))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["notice"] == "Research use only. Not a medical device."
    assert "not specific to COVID-19" in report["limits"]
    assert report["model"]["files"] == {file.name: file.sha256 for file in bundle.files}
    assert report["engine"] == {
        "name": "fake-pointwise",
        "provider": None,
        "device": None,
        "precision": "f32",
        "threads": None,
        "batch": 1,
        "quality": "balanced",
        "step": 0.5,
        "tile_shape": [16, 16, 16],
        "tiles": 3 * 4 * 5,  # 28x36x44 voxels, a tile every 8
    }
    assert report["scan"] == {
        "file": "ct.nii.gz",
        "shape": [28, 36, 44],
        "spacing_mm": [2.0, 1.5, 1.5],
        "orientation": "SPL",
        "window_hu": None,
    }
    assert report["measures"]["infection_volume_ml"]["left"] == pytest.approx(1.323)
    assert str(tiny_bundle) not in json.dumps(report)


def test_numbers_without_a_value_are_null() -> None:
    given = {"a": float("nan"), "b": np.float32("inf"), 3: (np.int64(4), None, True)}
    assert plain_json(given) == {"a": None, "b": None, "3": [4, None, True]}


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot hold Path|cannot hold PosixPath"):
        plain_json({"a": Path("x")})
