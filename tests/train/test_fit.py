"""Real trainings of a tiny network on a drawn chest written as NIfTI."""

import csv
import dataclasses

import nibabel as nib
import numpy as np
import pytest
import torch
from test_lung_labels import drawn_chest

from covidseg_runtime.errors import SettingsError
from covidseg_train.checkpoint import load_checkpoint
from covidseg_train.config import config_from_dict
from covidseg_train.fit import fit


@pytest.fixture
def experiment(tmp_path):
    hu, _, right, _, _ = drawn_chest()
    infection = np.zeros(hu.shape, bool)
    infection[25:38, 46:56, 26:38] = right[25:38, 46:56, 26:38]
    hu[infection] = -300
    affine = np.diag([-3.0, -3.0, 3.0, 1.0])  # LPS
    for name in ("case_a", "case_b"):
        for what, array in (("ct", hu), ("infection", infection.astype(np.uint8))):
            image = nib.Nifti1Image(np.ascontiguousarray(array.T), affine)
            nib.save(image, tmp_path / f"{name}_{what}.nii.gz")
    return config_from_dict(
        {
            "name": "tiny",
            "data": {
                "dataset": "covid_19_ct_seg_rebuilt",
                "root": str(tmp_path),
                "train": ["case_a"],
                "validation": ["case_b"],
                "cache": str(tmp_path / "cache"),
            },
            "grid": {"spacing_mm": [3.0, 3.0, 3.0]},
            "network": {"widths": [4, 8], "strides": [[2, 2, 2]], "supervised_levels": 1},
            "patches": {"shape": [16, 16, 16]},
            "tiles": {"shape": [32, 32, 32]},
            "optimiser": {"name": "adamw", "learning_rate": 0.01, "ema_decay": 0.5},
            "run": {"epochs": 4, "steps_per_epoch": 5, "validate_every": 2, "precision": "fp32"},
        }
    )


def last_tensors(folder):
    return load_checkpoint(folder / "last.safetensors").tensors


def test_a_run_learns_and_leaves_checkpoints_and_logs(experiment, tmp_path):
    result = fit(experiment, tmp_path / "run", device="cpu")
    with (result.run_folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["validation_dsc"] != "" for row in rows] == [False, True, False, True]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert result.best_checkpoint.is_file()
    assert result.best_score == load_checkpoint(result.best_checkpoint).progress.best_score
    assert list((result.run_folder / "tensorboard").iterdir())


def test_a_stopped_run_goes_on_to_the_same_weights(experiment, tmp_path, monkeypatch):
    fit(experiment, tmp_path / "whole", device="cpu")

    class StoppedError(Exception):
        pass

    import covidseg_train.fit as module

    original = module.write_checkpoint
    written = []

    def write_then_stop(training, path):
        original(training, path)
        written.append(path)
        if len(written) == 2:
            raise StoppedError

    monkeypatch.setattr(module, "write_checkpoint", write_then_stop)
    with pytest.raises(StoppedError):
        fit(experiment, tmp_path / "parts", device="cpu")
    monkeypatch.setattr(module, "write_checkpoint", original)
    fit(experiment, tmp_path / "parts", device="cpu")
    whole, parts = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_another_experiment_does_not_overwrite_a_run(experiment, tmp_path):
    short = dataclasses.replace(experiment, run=dataclasses.replace(experiment.run, epochs=1))
    fit(short, tmp_path / "run", device="cpu")
    with pytest.raises(SettingsError, match="another experiment"):
        fit(experiment, tmp_path / "run", device="cpu")
