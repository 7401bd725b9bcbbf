"""Real trainings of a tiny network on a drawn chest written as NIfTI."""

import csv
import dataclasses

import pytest
import torch
from drawn_chest import write_tiny_experiment

from covidseg_runtime.errors import SettingsError
from covidseg_train.checkpoint import load_checkpoint
from covidseg_train.config import SourceConfig, load_config
from covidseg_train.distributed import Ranks
from covidseg_train.fit import LAST, fit, load_training_sets, start_training, train_step
from covidseg_train.patches import PatchSampler
from covidseg_train.source_commit import source_commit
from covidseg_train.transfer import build_network


@pytest.fixture
def experiment(tmp_path):
    return load_config(write_tiny_experiment(tmp_path))


def test_a_run_learns_and_leaves_checkpoints_and_logs(experiment, tmp_path):
    result = fit(experiment, tmp_path / "run", device="cpu")
    with (result.run_folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["validation_dsc"] != "" for row in rows] == [False, True, False, True]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert result.best_checkpoint.is_file()
    assert result.best_score == load_checkpoint(result.best_checkpoint).progress.best_score
    assert load_checkpoint(result.best_checkpoint).progress.commit == source_commit()
    assert list((result.run_folder / "tensorboard").iterdir())


def with_steps(experiment, steps):
    run = dataclasses.replace(experiment.run, epochs=1, steps_per_epoch=steps)
    return dataclasses.replace(experiment, run=run, data=dataclasses.replace(experiment.data, validation=()))


def test_another_experiment_does_not_overwrite_a_run(experiment, tmp_path):
    fit(with_steps(experiment, 1), tmp_path / "run", device="cpu")
    with pytest.raises(SettingsError, match="another experiment"):
        fit(experiment, tmp_path / "run", device="cpu")


def test_a_run_whose_data_have_moved_goes_on(experiment, tmp_path):
    fit(with_steps(experiment, 2), tmp_path / "run", device="cpu")
    log = (tmp_path / "run" / "log.csv").read_bytes()
    (tmp_path / "moved").mkdir()
    for path in tmp_path.glob("case_*"):
        path.rename(tmp_path / "moved" / path.name)
    data = dataclasses.replace(experiment.data, root=str(tmp_path / "moved"))
    fit(with_steps(dataclasses.replace(experiment, data=data), 2), tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "log.csv").read_bytes() == log


def test_two_tasks_are_trained_in_one_run(experiment, tmp_path):
    source = SourceConfig("covid-19-ct-seg-rebuilt", experiment.data.root, ("case_b",), task="tumour")
    data = dataclasses.replace(experiment.data, sources=(source,))
    config = with_steps(dataclasses.replace(experiment, data=data), 8)
    fit(config, tmp_path / "run", device="cpu")
    weights = load_checkpoint(tmp_path / "run" / LAST).part("network")
    torch.manual_seed(config.run.seed)
    fresh = build_network(config).state_dict()
    assert weights.keys() == fresh.keys()
    for name in ("encoder.stages.0.0.0.weight", "heads.0.weight", "other_heads.tumour.0.weight"):
        assert not torch.equal(weights[name], fresh[name]), name


def test_the_same_experiment_has_the_same_losses_bit_for_bit(experiment, tmp_path):
    def first_losses(folder):
        folder.mkdir()
        training = start_training(experiment, torch.device("cpu"), folder, Ranks())
        sampler = PatchSampler(load_training_sets(experiment.data, experiment), experiment, training.device)
        return [train_step(training, sampler.batch(step)).item() for step in range(20)]

    losses = first_losses(tmp_path / "once")
    assert len(set(losses)) == 20
    assert first_losses(tmp_path / "again") == losses
