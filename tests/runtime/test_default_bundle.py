"""The shipped model on real lungs that have no COVID-19, small enough for every run of the suite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from covidseg_runtime import Segmentation, Segmenter, Volume, read_volume
from covidseg_runtime.bundle import default_bundle_path, load_bundle
from covidseg_runtime.volume import reorient_array

CROP = Path(__file__).parents[1] / "data" / "lidc_0001_crop_ct.nii.gz"
LARGEST_BUNDLE_BYTES = 12e6


@pytest.fixture(scope="module")
def crop() -> Volume:
    return read_volume(CROP)


@pytest.fixture(scope="module")
def segmentation(crop: Volume) -> Segmentation:
    with Segmenter.open(engine="openvino", device="cpu") as segmenter:
        return segmenter.segment(crop)


def test_lungs_lie_where_lungs_are(crop: Volume, segmentation: Segmentation) -> None:
    assert segmentation.labels.shape == crop.shape
    lungs = (segmentation.labels == 1) | (segmentation.labels == 2)
    air_in_lungs = crop.voxels[lungs]
    assert -900 < np.median(air_in_lungs) < -700
    inside = (crop.voxels > -1000) & (crop.voxels < -700)  # lung parenchyma, with some airway and some fat-free skin
    assert lungs[inside].mean() > 0.85


def test_the_left_lung_is_on_the_left_of_the_patient(crop: Volume, segmentation: Segmentation) -> None:
    spl = reorient_array(segmentation.labels, crop.orientation, "SPL")
    left, right = (np.nonzero(spl == label)[2].mean() for label in (1, 2))
    assert left - right > 50  # voxels of 1.4 mm


def test_lungs_without_covid_are_mostly_called_clear(segmentation: Segmentation) -> None:
    percent = segmentation.measures.infection_percent.whole
    assert percent is not None
    assert percent < 5


def test_both_engines_label_the_same_in_float32_and_nearly_so_in_what_auto_takes(
    crop: Volume, segmentation: Segmentation
) -> None:
    labels = []
    for engine in ("openvino", "onnxruntime"):
        with Segmenter.open(engine=engine, device="cpu", precision="f32") as segmenter:
            labels.append(segmenter.segment(crop).labels)
    # OpenVINO has tiles fitted to the lungs, ONNX Runtime the bundle's own; on equal tiles the parity report compares.
    assert (labels[0] != labels[1]).mean() < 2e-3
    assert (labels[0] != segmentation.labels).mean() < 1e-3


def test_the_bundle_is_small_and_says_what_it_is() -> None:
    folder = default_bundle_path()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LARGEST_BUNDLE_BYTES
    bundle = load_bundle(folder)
    assert bundle.card["licence"] == "CC BY-NC-SA 4.0"
    held_out = {result["case"]: result["dsc"] for result in bundle.card["metrics"]["held_out"]}
    assert "coronacases_002" in held_out, "the demo's patient"
    assert len({result["patient"] for result in bundle.card["metrics"]["cross_validation"]}) == 8
    assert not set(held_out) & set(bundle.card["training"]["train"])
