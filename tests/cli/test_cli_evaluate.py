"""`covidseg evaluate` on label maps whose measures are known by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from phantom import spl_affine

from covidseg.cli import main
from covidseg_runtime.evaluation import compare_label_maps
from covidseg_runtime.volume import Volume, to_orientation

AFFINE = spl_affine((2.0, 1.0, 1.0))


def _save(path: Path, labels: NDArray[np.uint8], affine: NDArray[np.float64] = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


def _evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def _infection(shift: int) -> NDArray[np.uint8]:
    labels = np.zeros((10, 20, 30), np.uint8)
    labels[2:8, 5:15, 5 + shift : 15 + shift] = 3
    return labels


def test_equal_label_maps_agree_fully(tmp_path: Path) -> None:
    labels = _infection(0)
    labels[0, 0, :4] = 1
    path = _save(tmp_path / "a.nii.gz", labels)
    result = _evaluate(path, path, "--json")
    lung, infection = json.loads(result.stdout)
    assert (lung["name"], infection["name"]) == ("left lung", "infection")
    assert (lung["tolerance_mm"], infection["tolerance_mm"]) == (1.0, 3.0)
    assert infection["dice"] == infection["surface_dice"] == 1.0
    assert infection["hausdorff95_mm"] == 0.0
    assert infection["predicted_ml"] == infection["true_ml"] == pytest.approx(1.2)
    assert lung["true_ml"] == pytest.approx(0.008)


def test_a_shift_of_two_voxels(tmp_path: Path) -> None:
    prediction = _save(tmp_path / "p.nii.gz", _infection(2))
    truth = _save(tmp_path / "t.nii.gz", _infection(0))
    (infection,) = json.loads(_evaluate(prediction, truth, "--json").stdout)
    assert infection["dice"] == pytest.approx(0.8)  # 8 of 10 columns overlap
    assert infection["surface_dice"] == 1.0  # 2 mm is within 3 mm
    assert infection["hausdorff95_mm"] == pytest.approx(2.0)


def test_a_truth_in_another_axis_order_is_turned(tmp_path: Path) -> None:
    turned = to_orientation(Volume(_infection(0), AFFINE), "RAI")
    prediction = _save(tmp_path / "p.nii.gz", _infection(0))
    truth = _save(tmp_path / "t.nii.gz", np.ascontiguousarray(turned.voxels), turned.affine)
    (infection,) = json.loads(_evaluate(prediction, truth, "--json").stdout)
    assert infection["dice"] == 1.0


def test_a_truth_of_zeros_and_ones_is_an_infection_mask(tmp_path: Path) -> None:
    labels = _infection(0)
    labels[0, 0, :4] = 2
    prediction = _save(tmp_path / "p.nii.gz", labels)
    truth = _save(tmp_path / "t.nii.gz", (labels == 3).astype(np.uint8))
    result = _evaluate(prediction, truth)
    assert "The truth is an infection mask" in result.stderr
    header, line = result.stdout.splitlines()
    assert header.split()[:3] == ["label", "DSC", "NSD"]
    assert line.split()[:3] == ["infection", "1.0000", "1.0000"]


def test_truth_kind_labels_takes_ones_for_the_left_lung(tmp_path: Path) -> None:
    labels = (_infection(0) == 3).astype(np.uint8)
    path = _save(tmp_path / "p.nii.gz", labels)
    (lung,) = json.loads(_evaluate(path, path, "--truth-kind", "labels", "--json").stdout)
    assert (lung["label"], lung["dice"]) == (1, 1.0)


def test_an_infection_only_truth_with_other_numbers_needs_to_be_named(tmp_path: Path) -> None:
    prediction = _save(tmp_path / "p.nii.gz", _infection(0))
    truth = _save(tmp_path / "t.nii.gz", (_infection(0) == 3).astype(np.uint8) * 7)
    result = _evaluate(prediction, truth)
    assert result.exit_code == 3
    assert "--truth-kind infection" in result.stderr
    named = _evaluate(prediction, truth, "--truth-kind", "infection", "--json")
    assert json.loads(named.stdout)[0]["dice"] == 1.0


def test_a_value_that_is_undefined_is_null(tmp_path: Path) -> None:
    prediction = _save(tmp_path / "p.nii.gz", _infection(0))
    truth = _save(tmp_path / "t.nii.gz", np.zeros((10, 20, 30), np.uint8))
    (infection,) = json.loads(_evaluate(prediction, truth, "--json").stdout)
    assert infection["dice"] == 0.0
    assert infection["hausdorff95_mm"] is None  # infinite
    both = compare_label_maps(Volume(truth_voxels := np.zeros((3, 3, 3), np.uint8), AFFINE),
                              Volume(truth_voxels, AFFINE))  # fmt: skip
    assert math.isnan(both[0].dice)


def test_label_maps_of_two_scans_are_exit_3(tmp_path: Path) -> None:
    prediction = _save(tmp_path / "p.nii.gz", _infection(0))
    smaller = _save(tmp_path / "s.nii.gz", _infection(0)[1:])
    moved_affine = AFFINE.copy()
    moved_affine[2, 3] += 2
    moved = _save(tmp_path / "m.nii.gz", _infection(0), moved_affine)
    for truth, message in ((smaller, "has shape"), (moved, "2.00 mm apart")):
        result = _evaluate(prediction, truth)
        assert result.exit_code == 3
        assert message in result.stderr
