"""`covidseg train`, `export` and `segment --model`, one after the other as a user types them, on a drawn chest."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from drawn_chest import write_tiny_experiment

from covidseg.cli import main


def covidseg(*arguments: object) -> Result:
    """Run one command."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the tests, without a configuration file, with three drawn cases and their experiment."""
    folder = tmp_path_factory.mktemp("train_export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))
        patch.delenv("COVIDSEG_DATA", raising=False)
        write_tiny_experiment(folder)
        yield folder


@pytest.fixture(scope="module")
def training(here: Path) -> Result:
    """`covidseg train tiny.toml`."""
    return covidseg("train", "tiny.toml", "--device", "cpu")


@pytest.fixture(scope="module")
def exporting(here: Path, training: Result) -> Result:
    """`covidseg export` of that run."""
    return covidseg("export", "runs/tiny", "-o", "tiny-bundle", "--precision", "fp32,fp16,int8", "--force")


def test_the_run_is_named_after_its_configuration_and_tells_where_the_best_is(training: Result, here: Path) -> None:
    assert training.exit_code == 0, training.output
    run, best, score = training.stdout.splitlines()
    assert run == f"run: {Path('runs') / 'tiny'}"
    assert best == f"best checkpoint: {Path('runs') / 'tiny' / 'best.safetensors'}"
    assert 0 <= float(score.removeprefix("best score: ")) <= 1
    assert (here / "runs" / "tiny" / "best.safetensors").is_file()


def test_the_same_command_again_has_nothing_left_to_do(training: Result, here: Path) -> None:
    log = (here / "runs" / "tiny" / "log.csv").read_bytes()
    again = covidseg("train", "tiny.toml", "--device", "cpu")
    assert (again.exit_code, again.stdout) == (0, training.stdout)
    assert (here / "runs" / "tiny" / "log.csv").read_bytes() == log


def test_export_prints_the_parity_of_every_file_in_every_engine(exporting: Result) -> None:
    assert exporting.exit_code == 0, exporting.output
    *lines, bundle = exporting.stdout.splitlines()
    assert bundle == "bundle: tiny-bundle"
    for scan in ("case_c", "case_a"):
        for row in (
            "model.onnx on openvino f32",
            "model.onnx on onnxruntime f32",
            "model.fp16.onnx on openvino f16",
            "model.fp16.onnx on onnxruntime f16",
            "model.int8.onnx on openvino int8",
            "model.int8.onnx on onnxruntime int8",
        ):
            assert any(line.startswith(f"{scan}: {row}: logits differ by") for line in lines), row


def test_the_bundle_says_how_it_was_made_and_what_was_measured(exporting: Result, here: Path) -> None:
    description = json.loads((here / "tiny-bundle" / "bundle.json").read_text())
    assert description["training"]["train"] == ["case_a"]
    assert description["training"]["seed"] == 0
    assert description["training"]["steps"] in (10, 20)  # of the checkpoint that was best
    assert [result["case"] for result in description["metrics"]["held_out"]] == ["case_c"]
    calibration = description["calibration"]
    assert (calibration["cases"], calibration["held_out"]["cases"]) == (["case_b"], ["case_c"])
    assert 0.05 <= calibration["temperature"] <= 20
    assert calibration["nll"]["after"] <= calibration["nll"]["before"]
    parity = description["parity"]
    assert all(row["max_logit_difference"] <= 1e-3 for row in parity["results"] if row["precision"] == "f32")
    assert parity["forced"] is any(not row["passed"] for row in parity["results"] if row["precision"] != "bf16")
    card = (here / "tiny-bundle" / "MODEL_CARD.md").read_text()
    assert "Research use only" in card
    assert "| case_c |" in card
    assert "CC BY-NC-SA 4.0" in card
    assert ("Written by force" in card) is parity["forced"]


def test_a_precision_outside_its_limits_writes_nothing(training: Result, here: Path) -> None:
    result = covidseg(
        "export", "runs/tiny", "-o", "refused", "--precision", "fp32,int8", "--int8-dsc-change", "0", "--scan",
        "case_c_ct.nii.gz", "--truth", "case_c_infection.nii.gz",
    )  # fmt: skip
    assert result.exit_code == 5, result.output
    assert "model.int8.onnx on openvino (int8) differs from torch on case_c_ct.nii.gz" in result.stderr
    assert not (here / "refused").exists()


def test_the_best_of_a_folder_is_printed_and_exported(training: Result, here: Path) -> None:
    result = covidseg("export", "--best", "runs", "--ensemble", "-o", "best-bundle", "--scan", "case_c_ct.nii.gz")
    assert result.exit_code == 0, result.output
    head, best, chosen, *_ = result.stdout.splitlines()
    assert head.split() == ["arm", "folds", "validation", "DSC", "NSD", "parameters"]
    assert best.startswith("tiny, 1 cases")
    assert chosen == "chosen: tiny, 1 cases, all 1 folds"
    assert json.loads((here / "best-bundle" / "bundle.json").read_text())["network"]["architecture"] == "FoldEnsemble"


def test_of_a_run_the_best_weights_are_exported_and_of_a_study_s_cell_the_last(training: Result, here: Path) -> None:
    from covidseg_export.source import read_run
    from covidseg_train.checkpoint import load_checkpoint

    run, cell = here / "runs" / "tiny", here / "cell"
    shutil.copytree(run, cell)
    (cell / "measures.json").write_text("{}")
    steps = {name: load_checkpoint(run / f"{name}.safetensors").progress.step for name in ("best", "last")}
    assert steps["last"] == 20
    for folder, which, expected in (
        (run, None, "best"),
        (run, "last", "last"),
        (cell, None, "last"),
        (cell, "best", "best"),
    ):
        trained = read_run(folder, version="1", which=which).training
        assert (trained["weights"], trained["steps"]) == (expected, steps[expected])


def test_the_last_weights_are_exported_as_trained_where_that_is_asked_for(training: Result, here: Path) -> None:
    from covidseg_export.source import read_run

    result = covidseg(
        "export", "runs/tiny", "-o", "as-trained", "--checkpoint", "last", "--as-trained", "--scan", "case_c_ct.nii.gz"
    )
    assert result.exit_code == 0, result.output
    assert "decision:" not in result.stdout
    description = json.loads((here / "as-trained" / "bundle.json").read_text())
    assert "decision" not in description
    assert description["training"]["weights"] == "last"
    assert description["calibration"]["cases"] == ["case_b"]
    assert "Experiment: `tiny`, its last weights." in (here / "as-trained" / "MODEL_CARD.md").read_text()
    head = read_run(here / "runs" / "tiny", version="1", which="last").network.heads[0]
    np.testing.assert_array_equal(_last_bias(here / "as-trained" / "model.onnx"), head.bias.detach().numpy())


@pytest.mark.parametrize("option", [("--as-trained",), ("--checkpoint", "last")])
def test_what_needs_a_run_refuses_a_bundle(here: Path, option: tuple[str, ...]) -> None:
    result = covidseg("export", "default", "-o", "none", *option)
    assert result.exit_code == 2
    assert "a bundle keeps its weights and its decision" in result.stderr
    assert not (here / "none").exists()


def _last_bias(model: Path) -> np.ndarray:
    import onnx
    from onnx import numpy_helper

    tensors = {one.name: one for one in onnx.load(model).graph.initializer}
    (name,) = (one for one in tensors if one.endswith("heads.0.bias"))
    return numpy_helper.to_array(tensors[name])


def test_a_bundle_can_be_exported_again_under_another_name(exporting: Result, here: Path) -> None:
    result = covidseg("export", "tiny-bundle", "-o", "again", "--data", ".", "--name", "ours", "--model-version", "1.2",
                      "--step", "0.625", "--importance-sigma", "0.5", "--scan", "case_c_ct.nii.gz")  # fmt: skip
    assert result.exit_code == 0, result.output
    described = json.loads((here / "again" / "bundle.json").read_text())
    assert (described["name"], described["version"]) == ("ours", "1.2")
    assert described["decision"] == json.loads((here / "tiny-bundle" / "bundle.json").read_text())["decision"]
    assert (described["tile_plan"]["step"], described["tile_plan"]["importance_sigma"]) == (0.625, 0.5)
    first, second = (here / name / "model.onnx" for name in ("tiny-bundle", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_triton_repository_is_written_from_a_bundle(exporting: Result, here: Path) -> None:
    result = covidseg("export", "tiny-bundle", "--triton", "triton")
    assert result.exit_code == 0, result.output
    assert (here / "triton" / "tiny-fp32" / "config.pbtxt").is_file()


def test_a_plan_without_tensorrt_is_one_sentence(exporting: Result) -> None:
    result = covidseg("export", "tiny-bundle", "--trt")
    assert result.exit_code == 2
    assert "TensorRT cannot be loaded" in result.stderr


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_segment_runs_what_was_exported(exporting: Result, here: Path, engine: str) -> None:
    result = covidseg(
        "segment", "case_c_ct.nii.gz", "--model", "tiny-bundle", "--engine", engine, "-o", f"{engine}.nii.gz", "--json"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    scan, labels = nibabel.load(here / "case_c_ct.nii.gz"), nibabel.load(here / f"{engine}.nii.gz")
    assert labels.shape == scan.shape
    assert np.array_equal(labels.affine, scan.affine)
    assert report["model"]["name"] == "tiny"
    assert report["measures"]["lung_volume_ml"]["whole"] > 0


def test_a_run_without_a_checkpoint_is_refused(here: Path) -> None:
    (here / "empty").mkdir()
    result = covidseg("export", "empty", "-o", "none")
    assert result.exit_code == 5
    assert "give the folder of a finished `covidseg train`" in result.stderr
    assert not (here / "none").exists()


def test_an_altered_checkpoint_is_refused(training: Result, here: Path) -> None:
    run = here / "altered"
    run.mkdir()
    whole = (here / "runs" / "tiny" / "best.safetensors").read_bytes()
    (run / "best.safetensors").write_bytes(whole[: len(whole) // 2])
    result = covidseg("export", "altered", "-o", "none")
    assert result.exit_code == 5, result.output
    assert len(result.stderr.splitlines()) == 1
    assert not (here / "none").exists()


def test_a_missing_case_is_one_sentence_before_any_training(here: Path) -> None:
    (here / "elsewhere").mkdir()
    result = CliRunner().invoke(
        main, ["train", "tiny.toml", "-o", "runs/missing"], env={"COVIDSEG_DATA": str(here / "elsewhere")}
    )
    assert result.exit_code == 3, result.output
    assert "case_a" in result.stderr
    assert not (here / "runs" / "missing" / "last.safetensors").exists()


def test_a_data_folder_that_does_not_exist_is_exit_2(here: Path) -> None:
    assert covidseg("train", "quick", "--data", "missing").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(["train", "quick"], "train"), (["export", ".", "-o", "bundle"], "export")],
)
def test_without_torch_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch, arguments: list[str], extra: str) -> None:
    for name in [name for name in sys.modules if name.startswith(("covidseg_train", "covidseg_exp"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = covidseg(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.endswith(f"needs torch, which is not installed: pip install 'covidseg[{extra}]'")


def test_export_needs_a_run_or_a_bundle_and_an_output(here: Path) -> None:
    assert covidseg("export", "missing", "-o", "bundle").exit_code == 5
    assert covidseg("export", "-o", "bundle").exit_code == 2
    assert covidseg("export", ".").exit_code == 2
    assert covidseg("export", ".", "--ensemble", "-o", "bundle").exit_code == 2
