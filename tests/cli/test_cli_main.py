"""The group: help, version, configuration, and what every command shares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from covidseg import __version__
from covidseg.cli import main
from covidseg.cli.exit_codes import CommandError, error_seam, needs_extra
from covidseg_runtime.errors import BundleError, EngineError, VolumeError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder and a home without a configuration file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_help_lists_every_command_and_every_one_exists() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name in ("segment", "evaluate", "train", "export", "study", "data", "models", "benchmark", "check"):
        assert f"\n  {name} " in result.stdout
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.stdout == f"covidseg, version {__version__}\n"


def test_an_unknown_command_is_exit_2() -> None:
    result = CliRunner().invoke(main, ["segmnet"])
    assert result.exit_code == 2
    assert "No such command 'segmnet'. Did you mean 'segment'?" in result.stderr
    assert "No such command 'scan.nii.gz'." in CliRunner().invoke(main, ["scan.nii.gz"]).stderr


def test_python_m_covidseg_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    command = [sys.executable, "-m", "covidseg", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"covidseg, version {__version__}\n"


def test_flag_before_environment_before_file_before_default(
    here: Path, phantom_scan: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine_of(*arguments: str) -> str:
        command = ["segment", str(phantom_scan), "--model", str(tiny_bundle), "--json", *arguments]
        result = CliRunner().invoke(main, [*command, "--device", "cpu"])
        assert result.exit_code == 0, result.output
        name: str = json.loads(result.stdout)["engine"]["name"]
        return name

    assert engine_of() == "openvino"
    (here / "covidseg.toml").write_text('[segment]\nengine = "onnxruntime"\n')
    assert engine_of() == "onnxruntime"
    monkeypatch.setenv("COVIDSEG_SEGMENT_ENGINE", "openvino")
    assert engine_of() == "openvino"
    assert engine_of("--engine", "onnxruntime") == "onnxruntime"


def test_the_home_folder_has_a_configuration_too(here: Path, phantom_scan: Path, tiny_bundle: Path) -> None:
    folder = here / "home" / ".config" / "covidseg"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'[segment]\nmodel = "{tiny_bundle}"\nmin-lesion-ml = 9\n')
    result = CliRunner().invoke(main, ["segment", str(phantom_scan), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"]["name"] == "tiny"
    assert report["measures"]["infection_volume_ml"]["whole"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[segment", "cannot be read"),
        ("[segmentation]\n", "'segmentation' is not a table"),
        ("segment = 3\n", "'segment' is not a table"),
        ("[models]\ncolour = 1\n", "[models] colour"),
    ],
)
def test_a_faulty_configuration_is_exit_2(here: Path, text: str, message: str) -> None:
    (here / "covidseg.toml").write_text(text)
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_configuration_can_be_named(here: Path) -> None:
    (here / "mine.toml").write_text("[models]\njson = true\n")
    result = CliRunner().invoke(main, ["--config", "mine.toml", "models"])
    assert isinstance(json.loads(result.stdout), list)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (VolumeError("bad scan"), 3),
        (BundleError("bad model"), 5),
        (EngineError("no engine"), 2),
        (MemoryError(), 1),
        (PermissionError(13, "Permission denied", "out.nii.gz"), 1),
    ],
)
def test_each_error_has_one_exit_code(error: Exception, exit_code: int) -> None:
    with pytest.raises(CommandError) as caught, error_seam():
        raise error
    assert caught.value.exit_code == exit_code
    assert caught.value.__cause__ is error


def test_an_error_of_several_lines_is_shown_as_one() -> None:
    with pytest.raises(CommandError) as caught, error_seam():
        raise VolumeError("first\n  second")
    assert caught.value.message == "first second"


def test_a_fault_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), error_seam():
        raise ZeroDivisionError


def test_a_missing_package_is_one_sentence_with_its_pip_line() -> None:
    with pytest.raises(click.ClickException) as caught, needs_extra("train", "Training"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")
    assert caught.value.exit_code == 2
    assert caught.value.message == ("Training needs torch, which is not installed: pip install 'covidseg[train]'")
