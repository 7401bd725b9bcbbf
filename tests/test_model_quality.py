"""The pure parts of benchmarks/model_quality.py: who was learned from, what scans are turned into, the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, spl_affine

from benchmarks.model_quality_scans import (
    are_sides_swapped,
    dilated,
    gaps_in_reference,
    grey_levels,
    thick_slices,
    unnamed_sources,
    use_in_training,
    water_phantom,
    whole_hu,
    with_noise,
)
from benchmarks.model_quality_tables import to_markdown
from covidseg_runtime.volume import Volume, to_orientation

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "model_quality.py"
TRAINING = {
    "dataset": "covid-19-ct-seg-rebuilt",
    "train": ["coronacases_001", "radiopaedia_10_85902_3"],
    "validation": ["radiopaedia_14_85914_0_128"],
    "test": ["coronacases_002"],
    "steps": 2000,
    "sources": [{"dataset": "collected-chest", "train": ["4DLung-113"], "weight": 0.2}],
    "pretraining": {
        "sets": [
            {"dataset": "lidc-nodule-crops", "train": ["LIDC-IDRI-0001_n02"]},
            {"dataset": "simulated-infection", "train": ["*"]},
        ],
        "hosts": ["ct/LIDC-IDRI-0003_ct.nii.gz"],
        "cases": 24,
        "pretraining": [{"checkpoint": "older/best.safetensors", "at_hand": False}],
    },
}


@pytest.mark.parametrize(
    ("case", "use"),
    [
        ("coronacases_001", "learned from"),
        ("coronacases_002", "no"),
        ("radiopaedia_10_85902_1_128", "learned from"),  # the patient of radiopaedia_10_85902_3
        ("radiopaedia_14_85914_0_128", "validated the training"),
        ("radiopaedia_4_85506_1_128", "no"),
        ("4DLung-113", "learned from"),
        ("LIDC-IDRI-0001", "learned from"),
        ("LIDC-IDRI-0002", "no"),
        ("LIDC-IDRI-0003", "learned from"),
    ],
)
def test_a_patient_is_found_in_every_set_of_the_training(case: str, use: str) -> None:
    assert use_in_training(TRAINING, case) == use


def test_what_the_bundle_does_not_name_is_told() -> None:
    assert unnamed_sources(TRAINING) == ["older/best.safetensors", "simulated-infection"]


def test_a_gap_is_where_a_reference_lacks_a_lung() -> None:
    mask = np.zeros((100, 100, 30), np.bool_)
    for z in range(2, 28):
        mask[: 10 + 3 * z, :80, z] = True  # grows towards one end, as lungs do
    spacing_mm = (1.0, 1.0, 3.0)
    assert gaps_in_reference(mask, spacing_mm) == []
    mask[20:, :, [15, 16, 20]] = False
    assert gaps_in_reference(mask, spacing_mm) == [15, 16, 20]


def test_dilation_reaches_its_distance_in_mm_along_every_axis() -> None:
    mask = np.zeros((21, 21, 9), np.bool_)
    mask[10, 10, 4] = True
    wider = dilated(mask, (1.0, 2.0, 2.5), 5.0)
    assert np.flatnonzero(wider[:, 10, 4]).tolist() == list(range(5, 16))
    assert np.flatnonzero(wider[10, :, 4]).tolist() == [8, 9, 10, 11, 12]
    assert np.flatnonzero(wider[10, 10, :]).tolist() == [2, 3, 4, 5, 6]
    assert not wider[14, 12, 4]  # 4 mm and 4 mm: 5.7 mm away
    assert wider[13, 12, 4]  # 3 mm and 4 mm: 5 mm away


def test_dilation_stops_at_the_scan_and_keeps_nothing_empty() -> None:
    mask = np.zeros((4, 4, 4), np.bool_)
    assert not dilated(mask, (1.0, 1.0, 1.0), 5.0).any()
    mask[0, 0, 0] = True
    assert dilated(mask, (1.0, 1.0, 1.0), 9.0).all()
    assert mask.sum() == 1


@pytest.fixture
def ramp() -> Volume:
    """(X, Y, Z) LPS, 20 slices of 1.5 mm; HU grow by 10 a slice."""
    affine = np.diag([-0.8, -0.7, 1.5, 1.0])
    affine[:3, 3] = (100.0, 90.0, -300.0)
    hu = np.broadcast_to(np.arange(20, dtype=np.int16) * 10 - 500, (3, 4, 20))
    return Volume(np.ascontiguousarray(hu), affine)


def test_thick_slices_lie_where_the_thin_ones_lay(ramp: Volume) -> None:
    thick = thick_slices(ramp, 5.0)
    assert (thick.shape, thick.orientation) == ((6, 4, 3), "SPL")
    assert thick.spacing_mm == pytest.approx((5.0, 0.7, 0.8))
    thin = to_orientation(ramp, "SPL")
    # Both span 30 mm from the same edge, half a voxel before the first centre.
    for volume in (thin, thick):
        edge = volume.affine @ [-0.5, 0, 0, 1]
        np.testing.assert_allclose(edge, thin.affine @ [-0.5, 0, 0, 1])
    # HU are linear in z, so away from the ends an average is the value at its centre.
    z_mm = np.array([(thick.affine @ [k, 0, 0, 1])[2] for k in range(1, 5)])
    np.testing.assert_allclose(thick.voxels[1:5, 0, 0], -500 + (z_mm + 300.0) / 1.5 * 10, atol=0.2)


def test_thick_slices_average_every_thin_one(ramp: Volume) -> None:
    one = np.zeros(ramp.shape, np.int16)
    one[:, :, 9] = 1
    share = thick_slices(Volume(one, ramp.affine), 5.0).voxels[:, 0, 0]
    assert 0 < share.max() < 0.5
    assert share.sum() == pytest.approx(0.3, abs=0.01)  # 1.5 of 5 mm


def test_noise_has_its_sd_its_seed_and_the_range_of_a_scanner() -> None:
    scan = Volume(np.full((40, 40, 40), -500, np.int16), np.eye(4))
    noisy = with_noise(scan, 30.0, seed=1)
    assert noisy.voxels.dtype == np.int16
    assert float(noisy.voxels.std()) == pytest.approx(30.0, rel=0.02)
    assert float(noisy.voxels.mean()) == pytest.approx(-500.0, abs=0.5)
    np.testing.assert_array_equal(noisy.voxels, with_noise(scan, 30.0, seed=1).voxels)
    assert whole_hu(Volume(np.array([[[-3000.0, 40.6, 9000.0]]]), np.eye(4))).voxels.tolist() == [[[-1024, 41, 3071]]]


def test_grey_levels_are_the_window_in_256_steps() -> None:
    scan = Volume(np.array([[[-1300, -1250, -500, 250, 900]]], np.int16), np.eye(4))
    assert grey_levels(scan).voxels.tolist() == [[[0, 0, 128, 255, 255]]]


def test_the_water_phantom_holds_its_volume() -> None:
    phantom = water_phantom()
    water_ml = np.count_nonzero(phantom.voxels == 0) * np.prod(phantom.spacing_mm) / 1000
    assert water_ml == pytest.approx(np.pi * 10**2 * 15, rel=0.01)  # cm
    assert phantom.orientation == "LPS"


@pytest.mark.parametrize(("left_x", "swapped"), [(slice(6, 9), False), (slice(0, 3), True)])
def test_swapped_sides_are_seen_in_any_orientation(left_x: slice, *, swapped: bool) -> None:
    labels = np.zeros((9, 5, 4), np.uint8)  # LPS: x grows towards the patient's left
    labels[3:6] = 2
    labels[left_x] = 1
    assert are_sides_swapped(labels, "LPS") is swapped
    assert are_sides_swapped(labels[::-1], "RPS") is swapped
    assert are_sides_swapped(np.where(labels == 1, 1, 0).astype(np.uint8), "LPS") is None


def test_tables_show_what_was_not_averaged_and_what_was_said() -> None:
    case = {"case": "radiopaedia_29", "dsc": 0.0, "nsd_3mm": None, "predicted_ml": 3.21, "reference_ml": 0.2}
    record = {
        "model": {"name": "default", "version": "0.2.0", "engine": ["openvino", "bf16"], "quality": "balanced"},
        "sections": {
            "covid": {
                "cases": [{**case, "volume_error": 15.05, "not_averaged": "7 infected voxels"}],
                "summary": {"coronacases": {"n": 0}},
            },
            "out_of_distribution": {
                "cases": [
                    {"case": "noise", "outcome": "refused", "refused": "no CT", "warnings": []},
                    {
                        "case": "water",
                        "outcome": "quiet",
                        "lung_ml": 1.0,
                        "infection_ml": None,
                        "refused": None,
                        "warnings": [],
                    },
                ]
            },
        },
    }
    lines = to_markdown(record).splitlines()
    assert lines[0] == "Model default 0.2.0, openvino in bf16, quality balanced."
    assert "| radiopaedia_29 | 0.000 | – | 3.2 | 0.2 | +1505 % | 7 infected voxels: not averaged |" in lines
    assert "| coronacases | 0 | – | – | – |" in lines
    assert "| noise | refused | – | – | no CT |" in lines
    assert "| water | quiet | 1.0 | – | – |" in lines


def test_the_command_measures_held_out_modified_and_unsuitable_scans(tiny_bundle: Path, tmp_path: Path) -> None:
    covid = tmp_path / "data" / "covid"
    covid.mkdir(parents=True)
    affine = spl_affine(PHANTOM_SPACING_MM)
    infection = (phantom_labels() == 3).astype(np.uint8)
    hu = phantom_hu()
    hu[0, 0] = np.linspace(0, 200, 44)  # soft tissue; more grey levels than a label map has
    for what, voxels in (("ct", hu), ("infection", infection)):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), covid / f"coronacases_999_{what}.nii.gz")
    command = [sys.executable, str(BENCHMARK), str(tmp_path / "data"), "--model", str(tiny_bundle), "--threads", "1"]
    chosen = ["--only", "covid", "modified", "out_of_distribution", "--cases", "coronacases_999", "noise"]
    run = subprocess.run(
        [*command, "-o", str(tmp_path / "pictures"), *chosen], check=True, capture_output=True, text=True
    )
    record = json.loads(run.stdout)
    (case,) = record["sections"]["covid"]["cases"]
    assert case["dsc"] == pytest.approx(1.0, abs=0.02)
    assert (tmp_path / "pictures" / case["picture"]).is_file()
    thick, noisy, grey, mapped_back = record["sections"]["modified"]["cases"]
    assert 0 < thick["dsc_loss"] < 1
    assert thick["warnings"]
    assert noisy["dsc_loss"] == 0  # the tiny network parts tissues 150 HU, five SD, from their own
    assert grey["refused"] or grey["warnings"]
    assert mapped_back["modification"] == "0–255 grey levels, window given"
    assert mapped_back["dsc_loss"] == 0  # 3 HU off at most
    assert "grey levels of a window from -1250 to 250 HU" in mapped_back["warnings"][0]
    (noise,) = record["sections"]["out_of_distribution"]["cases"]
    assert noise["outcome"] in ("refused", "warned")
    assert "### Held-out COVID-19 cases" in to_markdown(record)
