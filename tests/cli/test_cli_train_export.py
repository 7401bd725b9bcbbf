"""`covidseg train` and `covidseg export` hand over to the library and need their extras."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from click.testing import CliRunner

from covidseg.cli import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder and a home without a configuration file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COVIDSEG_DATA", raising=False)
    return tmp_path


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The calls that reach a training in place of the real one."""
    calls: list[tuple[object, ...]] = []

    def fit(config: object, run_folder: Path, *, device: str) -> SimpleNamespace:
        calls.append((config, run_folder, device))
        best = run_folder / "best.safetensors"
        return SimpleNamespace(run_folder=run_folder, best_checkpoint=best, best_score=0.75)

    config, training = ModuleType("config"), ModuleType("fit")
    config.load_config = lambda name, *, data_root: (name, data_root)  # type: ignore[attr-defined]
    training.fit = fit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "covidseg_train.config", config)
    monkeypatch.setitem(sys.modules, "covidseg_train.fit", training)
    return calls


def test_train_hands_over_and_tells_where_the_best_is(trainings: list[object], here: Path) -> None:
    (here / "ct").mkdir()
    arguments = ["train", "quick", "--data", "ct", "-o", "mine", "--device", "cpu"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert trainings == [(("quick", Path("ct")), Path("mine"), "cpu")]
    assert result.stdout.splitlines() == [
        "run: mine",
        f"best checkpoint: {Path('mine') / 'best.safetensors'}",
        "best score: 0.7500",
    ]


def test_the_run_is_named_after_its_configuration(trainings: list[object]) -> None:
    CliRunner().invoke(main, ["train", "folder/own.toml"])
    assert trainings == [(("folder/own.toml", None), Path("runs") / "own", "auto")]


def test_the_data_folder_can_come_from_the_environment(trainings: list[object], here: Path) -> None:
    (here / "ct").mkdir()
    CliRunner().invoke(main, ["train", "quick"], env={"COVIDSEG_DATA": "ct"})
    assert trainings == [(("quick", Path("ct")), Path("runs") / "quick", "auto")]


def test_a_data_folder_that_does_not_exist_is_exit_2(trainings: list[object]) -> None:
    result = CliRunner().invoke(main, ["train", "quick", "--data", "missing"])
    assert result.exit_code == 2
    assert not trainings


def test_export_hands_over_and_prints_the_parity(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def export_run(run: Path, bundle: Path, *, parity_scan: Path | None) -> SimpleNamespace:
        calls.append((run, bundle, parity_scan))
        parity = SimpleNamespace(max_logit_difference=2e-5, flipped_voxels=1, voxels=10)
        return SimpleNamespace(bundle_folder=bundle, parity={"openvino": parity})

    module = ModuleType("export_run")
    module.export_run = export_run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "covidseg_export.export_run", module)
    (here / "run").mkdir()
    result = CliRunner().invoke(main, ["export", "run", "-o", "bundle"])
    assert result.exit_code == 0, result.output
    assert calls == [(Path("run"), Path("bundle"), None)]
    assert result.stdout.splitlines() == [
        "bundle: bundle",
        "openvino: largest logit difference 2.0e-05, 1 of 10 labels differ",
    ]


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(["train", "quick"], "train"), (["export", ".", "-o", "bundle"], "export")],
)
def test_without_torch_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch, arguments: list[str], extra: str) -> None:
    for name in [name for name in sys.modules if name.startswith(("covidseg_train", "covidseg_exp"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.endswith(f"needs torch, which is not installed: pip install 'covidseg[{extra}]'")


def test_export_needs_a_run_and_an_output(here: Path) -> None:
    assert CliRunner().invoke(main, ["export", "missing", "-o", "bundle"]).exit_code == 2
    assert CliRunner().invoke(main, ["export", "."]).exit_code == 2
