"""An altered bundle ends every command with exit code 5 and one sentence, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result
from phantom import tiny_description, tiny_model, tiny_model_proto

from covidseg.cli import main
from covidseg_runtime.bundle import sha256_of

GRAPH = "model.onnx"
CARD = "MODEL_CARD.md"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a card, which is also the only one of the installation; the working folder is empty."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setattr("covidseg_runtime.bundle._models_folder", lambda: tmp_path / "models")
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / GRAPH).write_bytes(tiny_model())
    (folder / CARD).write_text("# Tiny\n")
    description = tiny_description(tiny_model())
    description["files"].append({"role": "card", "name": CARD, "sha256": sha256_of(folder / CARD), "precision": None})
    (folder / "bundle.json").write_text(json.dumps(description))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def replace_by_link(path: Path) -> None:
    moved = path.parent.parent.parent / path.name
    path.rename(moved)
    path.symlink_to(moved)


def move_weights_out(folder: Path) -> None:
    network = tiny_model_proto()
    onnx.external_data_helper.set_external_data(network.graph.initializer[0], location="weights.bin")
    (folder / GRAPH).write_bytes(network.SerializeToString())
    change_description(folder, lambda it: it["files"][0].update(sha256=sha256_of(folder / GRAPH)))


def change_description(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    description = json.loads((folder / "bundle.json").read_text())
    change(description)
    (folder / "bundle.json").write_text(json.dumps(description))


ALTERATIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "graph altered": (lambda folder: flip_last_byte(folder / GRAPH), f"{GRAPH} was altered"),
    "card altered": (lambda folder: flip_last_byte(folder / CARD), f"{CARD} was altered"),
    "description altered": (lambda folder: flip_last_byte(folder / "bundle.json"), "bundle.json cannot be read"),
    "graph missing": (lambda folder: (folder / GRAPH).unlink(), f"{GRAPH} is missing"),
    "card missing": (lambda folder: (folder / CARD).unlink(), f"{CARD} is missing"),
    "graph a link": (lambda folder: replace_by_link(folder / GRAPH), f"{GRAPH} is a link"),
    "card a link": (lambda folder: replace_by_link(folder / CARD), f"{CARD} is a link"),
    "external data": (move_weights_out, "external data"),
    "newer schema": (
        lambda folder: change_description(folder, lambda it: it.update(schema_version=2)),
        "has schema version 2; this covidseg reads 1",
    ),
    "name that leaves the folder": (
        lambda folder: change_description(folder, lambda it: it["files"][0].update(name="../model.onnx")),
        "file name '../model.onnx' is refused",
    ),
    "unknown classes": (
        lambda folder: change_description(folder, lambda it: it.update(classes=["background", "liver"])),
        "classes are ['background', 'liver']",
    ),
}
ALTERED = pytest.mark.parametrize(("alter", "message"), ALTERATIONS.values(), ids=ALTERATIONS)


def assert_one_sentence(result: Result, message: str) -> None:
    assert result.exit_code == 5, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert message in line
    assert not list(Path.cwd().iterdir())


@ALTERED
@pytest.mark.parametrize("output", [[], ["--json"], ["--preview", "look.png", "--report", "report.json"]])
def test_segment_refuses(
    bundle: Path, phantom_scan: Path, alter: Callable[[Path], object], message: str, output: list[str]
) -> None:
    alter(bundle)
    assert_one_sentence(run("segment", phantom_scan, "--model", bundle, *output), message)


@ALTERED
def test_segment_refuses_a_shipped_model_by_name(
    bundle: Path, phantom_scan: Path, alter: Callable[[Path], object], message: str
) -> None:
    alter(bundle)
    assert_one_sentence(run("segment", phantom_scan, "--model", "tiny"), message)


@ALTERED
def test_export_refuses_to_serve_it(bundle: Path, alter: Callable[[Path], object], message: str) -> None:
    alter(bundle)
    assert_one_sentence(run("export", bundle, "--triton", "repository"), message)


@ALTERED
def test_models_lists_it_as_unusable(bundle: Path, alter: Callable[[Path], object], message: str) -> None:
    alter(bundle)
    result = run("models")
    assert result.exit_code == 5
    (line,) = result.stdout.splitlines()
    assert line.startswith("tiny  UNUSABLE: ")
    assert message in line
    listed = run("models", "--json")
    assert listed.exit_code == 5
    (entry,) = json.loads(listed.stdout)
    assert message in entry["problem"]


# Without one of these nobody knows what would be computed; what is not here has a default or is only told.
NEEDED: tuple[tuple[str | int, ...], ...] = (
    *((key,) for key in ("schema_version", "name", "version", "labels", "preprocessing", "tile_plan", "files")),
    *(("labels", value) for value in "0123"),
    *(("preprocessing", key) for key in ("orientation", "spacing_mm", "scaling")),
    *(("preprocessing", "scaling", key) for key in ("lower_hu", "upper_hu", "mean_hu", "sd_hu")),
    *(("tile_plan", key) for key in ("tile_shape", "step")),
    *(("files", 0, key) for key in ("role", "name", "sha256")),
)


@pytest.mark.parametrize("path", NEEDED, ids=[".".join(map(str, path)) for path in NEEDED])
def test_a_description_without_a_needed_field_is_refused(
    bundle: Path, phantom_scan: Path, path: tuple[str | int, ...]
) -> None:
    def remove(description: Any) -> None:
        *way, last = path
        for key in way:
            description = description[key]
        del description[last]

    change_description(bundle, remove)
    field = "schema version" if path == ("schema_version",) else str(path[0] if path[0] == "labels" else path[-1])
    assert_one_sentence(run("segment", phantom_scan, "--model", bundle), field)
    assert run("models").exit_code == 5


@pytest.mark.parametrize("precision", ["int8", None])
def test_a_bundle_without_the_precision_asked_for_is_refused(
    bundle: Path, phantom_scan: Path, precision: str | None
) -> None:
    change_description(bundle, lambda it: it["files"][0].update(precision=precision))
    assert_one_sentence(run("segment", phantom_scan, "--model", bundle, "--device", "cpu"), "precision")
