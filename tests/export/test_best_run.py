"""The best network is the one the written rule names, and the table shows what it was chosen from."""

import json
from dataclasses import replace

import pytest
import torch

from covidseg_export.best_run import rank_runs, table_lines
from covidseg_runtime.errors import BundleError
from covidseg_train.checkpoint import Progress, save_checkpoint
from covidseg_train.config import load_config
from covidseg_train.transfer import build_network
from covidseg_train.unet import UNetSpec

SMALL = UNetSpec(widths=(4, 8), strides=((2, 2, 2),), supervised_levels=1)
LARGE = UNetSpec(widths=(6, 8), strides=((2, 2, 2),), supervised_levels=1)


def write_run(folder, name, score, *, network=SMALL, validation=("val",), measures=None):
    config = load_config("quick")
    data = replace(config.data, train=("a", "b"), validation=validation, test=())
    config = replace(config, name=name, data=data, network=network)
    torch.manual_seed(0)
    weights = build_network(config).state_dict()
    folder.mkdir(parents=True)
    save_checkpoint(folder / "best.safetensors", config, Progress(1, score), parts={"network": weights})
    if measures is not None:
        (folder / "measures.json").write_text(json.dumps(measures))


def test_folds_of_an_arm_are_one_candidate_and_the_highest_mean_wins(tmp_path):
    write_run(tmp_path / "1", "study-fold0-scratch-none", 0.9)
    write_run(tmp_path / "2", "study-fold1-scratch-none", 0.1)
    write_run(tmp_path / "3", "study-fold0-continual-effusion", 0.5)
    write_run(tmp_path / "4", "study-fold1-continual-effusion", 0.7)
    best, other = rank_runs(tmp_path)
    assert (best.arm, best.dsc) == ("study-continual-effusion, 2 cases", pytest.approx(0.6))
    assert [run.folder.name for run in best.runs] == ["4", "3"], "the best fold comes first"
    assert other.dsc == pytest.approx(0.5)


def test_equal_dsc_is_decided_by_nsd_then_by_size(tmp_path):
    measures = {"val": {"dsc": 0.50001, "nsd": 0.4}, "tested": {"dsc": 1.0, "nsd": 1.0}}
    write_run(tmp_path / "low", "low", 0.0, measures=measures)
    write_run(tmp_path / "high", "high", 0.0, measures={"val": {"dsc": 0.50002, "nsd": 0.6}})
    write_run(tmp_path / "large", "large", 0.0, network=LARGE, measures={"val": {"dsc": 0.5, "nsd": 0.6}})
    assert [score.arm for score in rank_runs(tmp_path)] == ["high, 2 cases", "large, 2 cases", "low, 2 cases"]


def test_a_training_that_nothing_validated_is_no_candidate(tmp_path):
    write_run(tmp_path / "pretraining", "pretraining", None, validation=())
    with pytest.raises(BundleError, match="holds no training that was validated"):
        rank_runs(tmp_path)
    write_run(tmp_path / "judged", "judged", 0.25)
    assert [score.arm for score in rank_runs(tmp_path)] == ["judged, 2 cases"]


def test_the_table_names_every_arm_with_its_numbers(tmp_path):
    write_run(tmp_path / "1", "one", 0.25)
    write_run(tmp_path / "2", "two", 0.0, measures={"val": {"dsc": 0.5, "nsd": 0.125}})
    head, best, other = table_lines(rank_runs(tmp_path))
    assert head.split()[0] == "arm"
    assert best.split() == [
        "two,",
        "2",
        "cases",
        "1",
        "0.5000",
        "0.125",
        f"{rank_runs(tmp_path)[0].runs[0].parameters:,}",
    ]
    assert other.split()[3:6] == ["1", "0.2500", "–"]
