"""`covidseg models` and `covidseg check` say what this installation and machine hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from phantom import tiny_model, write_tiny_bundle

from covidseg.cli import main
from covidseg_runtime.bundle import sha256_of


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with the tiny bundle in place of the package's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("covidseg_runtime.bundle._models_folder", lambda: tmp_path / "models")
    return write_tiny_bundle(tmp_path / "models" / "tiny", tiny_model())


def test_models_lists_name_checksum_licence_and_metrics(shipped: Path) -> None:
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "tiny 1.2.3",
        f"  folder   {shipped}",
        f"  sha256   {sha256_of(shipped / 'model.onnx')}  model.onnx",
        "  licence  CC0-1.0",
        '  metrics  {"held_out": []}',
    ]


def test_models_as_json(shipped: Path) -> None:
    (entry,) = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)
    assert (entry["name"], entry["licence"], entry["problem"]) == ("tiny", "CC0-1.0", None)


def test_an_altered_model_is_listed_and_exit_5(shipped: Path) -> None:
    (shipped / "model.onnx").write_bytes(b"something else")
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 5
    assert "tiny  UNUSABLE" in result.stdout
    assert "was altered" in result.stdout


def test_no_model_at_all_is_said(shipped: Path) -> None:
    (shipped / "bundle.json").unlink()
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 0
    assert "no model bundle" in result.stderr


def test_check_names_engines_devices_and_the_choice(shipped: Path) -> None:
    report = json.loads(CliRunner().invoke(main, ["check", "--json"]).stdout)
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert set(engines) == {"openvino", "onnxruntime", "tensorrt"}
    assert engines["openvino"]["precisions"][0] == "f32"
    assert {"engine": "openvino", "device": "cpu"} in report["order"]
    lines = CliRunner().invoke(main, ["check"]).stdout.splitlines()
    assert lines[0].startswith("openvino ")
    assert lines[-1].startswith("auto: ")


def test_check_says_what_is_missing(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = CliRunner().invoke(main, ["check"])
    assert result.exit_code == 0
    assert "pip install openvino" in result.stdout
    assert "auto: no engine is installed" in result.stdout
