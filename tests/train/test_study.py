"""Whole studies of a tiny network on drawn (simulated) chests, and their cells."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from drawn_chest import write_drawn_case

from covidseg.cli import main
from covidseg_runtime.errors import SettingsError
from covidseg_train.config import SourceConfig
from covidseg_train.splits import task1_folds, task2_split
from covidseg_train.study import Cell, Places, cell_experiment, list_cells, pretraining_experiment
from covidseg_train.study_config import load_study
from covidseg_train.unet import BENCHMARK_SPEC

STUDY = """\
name = "tiny"
strategies = ["continual", "hybrid"]
joint = ["two"]

[target]
dataset = "covid-19-ct-seg-rebuilt"
root = "covid"
cases = ["case_a", "case_b", "case_c"]
not_averaged = ["case_c"]

[[folds]]
train = ["case_a"]
curve = ["case_b"]

[[sources]]
name = "two"
sets = [
    { dataset = "collected-effusion", root = ".", task = "effusion" },
    { dataset = "collected-tumour", root = ".", task = "tumour" },
]
[[sources]]
name = "simulated"
kind = "simulated"
sets = [{ dataset = "simulated-infection", root = "simulated", task = "simulated-infection" }]

[simulation]
hosts = ["ct/case_e_ct.nii.gz"]
per_host = 1

[grid]
spacing_mm = [4.0, 4.0, 4.0]

[network]
classes = 2
widths = [4, 8]
strides = [[2, 2, 2]]
supervised_levels = 1

[patches]
shape = [16, 16, 16]

[tiles]
shape = [32, 32, 32]

[optimiser]
name = "adamw"
learning_rate = 0.01

[pretraining]
epochs = 1
steps_per_epoch = 4
precision = "fp32"

[fine_tuning]
epochs = 2
steps_per_epoch = 4
validate_every = 1
precision = "fp32"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three target cases, and one chest marked as effusion and as tumour."""
    root = tmp_path_factory.mktemp("data")
    for name in ("covid", "ct", "lesions"):
        (root / name).mkdir(parents=True)
    for name in ("case_a", "case_b", "case_c"):
        write_drawn_case(root / "covid", name)
    write_drawn_case(root / "ct", "case_e")
    mask = root / "ct" / "case_e_infection.nii.gz"
    for mark in ("effusion", "gtv"):
        (root / "lesions" / f"case_e_{mark}.nii.gz").write_bytes(mask.read_bytes())
    return root


@pytest.fixture(scope="module")
def study_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "tiny.toml"
    path.write_text(STUDY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run_once(study_file, data, tmp_path_factory):
    """A finished study: two processes shared it, and one of them was killed on the way."""
    output = tmp_path_factory.mktemp("finished") / "out"
    command = [sys.executable, "-m", "covidseg", "study", str(study_file), "--data", str(data), "--device", "cpu"]
    command += ["-o", str(output), "--threads", "1"]
    killed, other = (subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2))
    began = time.monotonic()
    while not (output / "cells").is_dir() and time.monotonic() - began < 120:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    _, errors = other.communicate(timeout=300)
    assert other.returncode == 0, errors.decode()
    return output


@pytest.fixture
def finished(run_once, tmp_path):
    """A copy of the finished study, to be changed."""
    return shutil.copytree(run_once, tmp_path / "out")


def run(study_file, data, output, *options):
    arguments = ["study", str(study_file), "--data", str(data), "-o", str(output), "--device", "cpu", *options]
    return CliRunner().invoke(main, arguments)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_processes_run_every_cell_and_a_killed_one_loses_none(study_file, finished):
    cells = list_cells(load_study(study_file))
    assert len(cells) == 1 + 1 + 2 * 2
    results = rows(finished / "results.csv")
    assert {(row["source"], row["strategy"]) for row in results} == {(cell.source, cell.strategy) for cell in cells}
    # Tested on what was not trained on, the case that is left out of means as well.
    assert {row["case"] for row in results} == {"case_b", "case_c"}
    assert {row["step"] for row in rows(finished / "curves.csv")} == {"4", "8"}
    assert (finished / "simulated/simulated_case_e_1_ct.nii.gz").is_file()
    assert "6 of 6" in (finished / "study.md").read_text(encoding="utf-8")


def test_a_cell_says_what_was_transferred(finished):
    transfer = json.loads((finished / "cells/fold0-hybrid-two/transfer.json").read_text())
    assert transfer["strategy"] == "hybrid"
    assert all(name.startswith("adapted_encoder.") for name in transfer["loaded"])


def test_what_is_done_stays_done_and_what_is_lost_is_measured_again(study_file, data, finished):
    stamps = {path: path.stat().st_mtime_ns for path in finished.glob("**/last.safetensors")}
    lost = finished / "cells/fold0-continual-two/measures.json"
    before = lost.read_text()
    lost.unlink()
    result = run(study_file, data, finished)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("mean DSC") == 1
    assert {path: path.stat().st_mtime_ns for path in finished.glob("**/last.safetensors")} == stamps
    assert lost.read_text() == before


def test_chosen_cells_alone_are_trained_and_reported(study_file, data, finished):
    shutil.rmtree(finished / "cells")
    result = run(study_file, data, finished, "--cells", "*-continual-two", "--cells", "fold0-hybrid-t*")
    assert result.exit_code == 0, result.output
    assert {path.parent.name for path in finished.glob("cells/*/measures.json")} == {
        "fold0-continual-two",
        "fold0-hybrid-two",
    }
    assert {row["strategy"] for row in rows(finished / "results.csv")} == {"continual", "hybrid"}
    assert "2 of 6" in (finished / "study.md").read_text(encoding="utf-8")


def test_cells_that_a_study_does_not_have_are_refused_by_name(study_file, data, tmp_path):
    result = run(study_file, data, tmp_path / "out", "--cells", "*-hybrid-*", "--cells", "fold7-*")
    assert result.exit_code == 2
    assert "'fold7-*'" in result.stderr
    assert "fold0-continual-two" in result.stderr
    assert not (tmp_path / "out").exists()
    result = run(study_file, data, tmp_path / "out", "--cells", "*-hybrid-*", "--report-only")
    assert (result.exit_code, "give one of them" in result.stderr) == (2, True)


def test_another_study_does_not_go_on_in_the_same_folder(data, finished, tmp_path):
    other = tmp_path / "tiny.toml"
    other.write_text(STUDY.replace("learning_rate = 0.01", "learning_rate = 0.02"), encoding="utf-8")
    result = run(other, data, finished)
    assert result.exit_code == 2
    assert "another study" in result.stderr


def test_a_report_of_what_is_finished_is_written_at_any_time(study_file, data, finished):
    (finished / "cells/fold0-continual-two/measures.json").unlink()
    result = run(study_file, data, finished, "--report-only")
    assert result.exit_code == 0, result.output
    assert "5 of 6" in (finished / "study.md").read_text(encoding="utf-8")


def test_a_refinement_goes_on_from_the_last_weights_and_is_what_is_measured(data, tmp_path):
    refined = tmp_path / "refined.toml"
    text = STUDY.replace('["continual", "hybrid"]', '["hybrid"]').replace('joint = ["two"]', "")
    refined.write_text(
        text
        + "[[refinement]]\nlearning_rate = 0.005\n[refinement.run]\nepochs = 1\nsteps_per_epoch = 3\n"
        + "[[refinement]]\nlearning_rate = 0.004\n[refinement.run]\nepochs = 1\nsteps_per_epoch = 2\n"
        + "[refinement.augmentation]\naffine_probability = 0.0\n",
        "utf-8",
    )
    result = run(refined, data, tmp_path / "out")
    assert result.exit_code == 0, result.output
    first, second, third = (tmp_path / "out/cells/fold0-scratch-none" / name for name in ("", "refined", "refined-2"))
    for before, after in ((first, second), (second, third)):
        transfer = json.loads((after / "transfer.json").read_text())
        assert (transfer["strategy"], transfer["new"], transfer["skipped"]) == ("continual", [], [])
        config = json.loads((after / "config.json").read_text())
        assert config["transfer"]["checkpoint"] == str(before / "last.safetensors")
        assert not (before / "measures.json").exists()
    hybrid = json.loads((tmp_path / "out/cells/fold0-hybrid-two/refined-2/transfer.json").read_text())
    assert (hybrid["strategy"], hybrid["new"], hybrid["skipped"]) == ("hybrid", [], [])
    assert json.loads((second / "config.json").read_text())["augmentation"]["affine_probability"] == 0.4
    assert config["augmentation"]["affine_probability"] == 0.0
    assert config["name"].endswith("-scratch-none-refined-2")
    assert (third / "measures.json").is_file()
    logs = [rows(folder / "log.csv") for folder in (first, second, third)]
    spent = {row["train_seconds"] for row in rows(tmp_path / "out/results.csv") if row["strategy"] == "scratch"}
    assert [float(one) for one in spent] == [pytest.approx(sum(float(log[-1]["seconds"]) for log in logs))]
    assert {row["step"] for row in rows(tmp_path / "out/curves.csv")} == {"4", "8", "11", "13"}


def test_a_missing_case_is_one_sentence(study_file, data, tmp_path):
    (tmp_path / "covid").mkdir()
    (tmp_path / "ct").symlink_to(data / "ct")
    result = run(study_file, tmp_path, tmp_path / "out")
    assert result.exit_code == 3
    assert "holds no case of" in result.stderr


def test_tasks_have_their_own_heads_in_pre_training_and_share_them_in_joint_training(study_file):
    study, places = load_study(study_file), Places(Path("study"), Path("data"))
    assert pretraining_experiment(study, places, study.sources[0]).data.tasks() == ("effusion", "tumour")
    joint = cell_experiment(study, places, Cell("two", "joint", 0))
    assert joint.data.tasks() == ("lesion",)
    assert [one.dataset for one in joint.data.training_sets()][1:] == ["collected-effusion", "collected-tumour"]
    assert joint.transfer.strategy == "scratch"


def test_every_arm_learns_from_the_sets_beside_the_target_under_its_own_task(study_file):
    study, places = load_study(study_file), Places(Path("study"), Path("data"))
    chest = SourceConfig("collected-chest", ".", ("LIDC-IDRI-0001",), weight=0.25)
    study = replace(study, target=replace(study.target, beside=(chest,)))
    for cell in (Cell("none", "scratch", 0), Cell("two", "hybrid", 0), Cell("two", "joint", 0)):
        first, second, *_ = cell_experiment(study, places, cell).data.training_sets()
        assert first.dataset == study.target.dataset
        assert second == replace(chest, root="data")
    assert not pretraining_experiment(study, places, study.sources[0]).data.training_sets()[0].dataset.endswith("chest")


def test_scratch_and_transfer_differ_in_nothing_but_the_transfer(study_file):
    study, places = load_study(study_file), Places(Path("study"), Path("data"))
    arms = (Cell("none", "scratch", 0), Cell("two", "hybrid", 0))
    scratch, hybrid = (cell_experiment(study, places, arm).to_dict() for arm in arms)
    assert hybrid.pop("transfer")["checkpoint"] == "study/pretraining/two/last.safetensors"
    scratch.pop("transfer")
    assert hybrid.pop("name") != scratch.pop("name")
    assert hybrid == scratch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('curve = ["case_b"]', "two separate choices of target.cases"),
        ('joint = ["two"]', "joint names lesions, which is no source"),
    ],
)
def test_contradictions_are_refused(tmp_path, change, message):
    wrong = {'curve = ["case_b"]': 'curve = ["case_a"]', 'joint = ["two"]': 'joint = ["lesions"]'}[change]
    path = tmp_path / "x.toml"
    path.write_text(STUDY.replace(change, wrong), encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        load_study(path)


def test_the_shipped_study_is_the_few_shot_one():
    study = load_study("few-shot")
    assert sorted({len(fold.train) for fold in study.folds}) == [2, 4]
    of_two = [case for fold in study.folds if len(fold.train) == 2 for case in fold.train]
    assert sorted(of_two) == sorted(case for case in study.target.cases if case.startswith("coronacases"))


def test_the_study_of_strategies_runs_the_default_s_first_fold_once():
    study, default = load_study("strategies"), load_study("default")
    assert sorted(study.strategies) == ["body", "continual", "encoder", "hybrid"]
    assert study.folds == default.folds[:1]
    same = replace(default, name="strategies", strategies=study.strategies, folds=study.folds, refinement=())
    assert same == study


def test_the_shipped_paper_study_is_the_benchmark_s_protocol():
    study = load_study("paper")
    folds = task1_folds()
    assert [fold.train for fold in study.folds] == [fold.train for fold in folds]
    assert all(set(fold.curve) <= set(published.test) for fold, published in zip(study.folds, folds, strict=True))
    assert set(study.target.cases) == {case for fold in folds for case in (*fold.train, *fold.test)}
    single = {source.name: source.sets for source in study.sources}
    for name in ("msd-lung-tumour", "structseg-2019-gtv", "nsclc-pleural-effusion"):
        assert [one.train for one in single[name]] == [task2_split(name).train]
    assert single["multi-lesion"] == sum((sets for name, sets in single.items() if name != "multi-lesion"), ())
    assert study.network == BENCHMARK_SPEC
    assert study.patches.shape == (56, 160, 192)


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("few-shot-batch", {"network"}),
        ("few-shot-concatenation", {"fusion"}),
        ("few-shot-frozen", {"frozen_steps"}),
    ],
)
def test_an_ablation_extends_the_study_and_changes_one_thing(name, difference):
    base, ablation = asdict(load_study("few-shot")), asdict(load_study(name))
    selection = {"name", "sources", "strategies", "joint"}
    assert {key for key in base if base[key] != ablation[key]} - selection == difference
    assert ablation["network"]["widths"] == base["network"]["widths"]


def test_a_study_that_extends_itself_is_refused(tmp_path):
    path = tmp_path / "few-shot.toml"
    path.write_text(f'extends = "{path}"\n', encoding="utf-8")
    with pytest.raises(SettingsError, match="extends itself"):
        load_study(path)
