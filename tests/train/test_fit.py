"""Real trainings of a tiny network on a drawn chest written as NIfTI."""

import csv
import dataclasses

import pytest
import torch
from drawn_chest import write_tiny_experiment

from covidseg_runtime.errors import SettingsError
from covidseg_train.checkpoint import load_checkpoint
from covidseg_train.config import load_config
from covidseg_train.fit import fit


@pytest.fixture
def experiment(tmp_path):
    return load_config(write_tiny_experiment(tmp_path))


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
