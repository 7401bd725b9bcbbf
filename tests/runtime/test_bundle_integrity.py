"""A bundle of several files is refused when any one of them is not what was exported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from phantom import tiny_description, tiny_model, tiny_model_proto

from covidseg_runtime.bundle import load_bundle, sha256_of
from covidseg_runtime.errors import BundleError

GRAPHS = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
CARD = "MODEL_CARD.md"
FILES = (*GRAPHS.values(), CARD)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle of three graphs and a card."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in GRAPHS.values():
        (folder / name).write_bytes(tiny_model())
    (folder / CARD).write_text("# Tiny\nFor tests.\n")
    roles = [("model", name, precision) for precision, name in GRAPHS.items()] + [("card", CARD, None)]
    description = tiny_description(b"") | {
        "files": [
            {"role": role, "name": name, "sha256": sha256_of(folder / name), "precision": precision}
            for role, name, precision in roles
        ]
    }
    description["sha256"] = own_sha256(description)
    (folder / "bundle.json").write_text(json.dumps(description, indent=2))
    return folder


def own_sha256(description: dict[str, Any]) -> str:
    """Of the description without that field, sorted and without spaces."""
    rest = {key: value for key, value in description.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def alter(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the description, but not what it says of its own checksum."""
    file = folder / "bundle.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the description as its author would."""
    alter(folder, change)
    alter(folder, lambda description: description.update(sha256=own_sha256(description)))


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as refusal:
        load_bundle(folder)
    assert len(str(refusal.value).splitlines()) == 1


def test_the_bundle_is_good_as_it_is(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert {precision: bundle.model_path(precision).name for precision in GRAPHS} == GRAPHS


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
def test_one_changed_byte_anywhere_in_any_file_is_refused(folder: Path, name: str, place: float) -> None:
    content = bytearray((folder / name).read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    (folder / name).write_bytes(content)
    assert_refused(folder, rf"{name} was altered: its sha256 is")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "change",
    [lambda content: content[:-1], lambda content: content + b"\n", lambda content: b""],
    ids=["cut", "grown", "emptied"],
)
def test_a_file_of_another_length_is_refused(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    assert_refused(folder, rf"{name} was altered")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_refused(folder, rf"{name} is missing, though bundle\.json lists it")


@pytest.mark.parametrize("name", FILES)
def test_a_link_is_refused_wherever_it_leads(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "moved")
    (folder / name).symlink_to(tmp_path / "moved")
    assert_refused(folder, rf"{name} is a link")
    (tmp_path / "moved").unlink()
    assert_refused(folder, rf"{name} is a link")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_files_place_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    assert_refused(folder, rf"{name} is missing")


@pytest.mark.parametrize("name", GRAPHS.values())
def test_external_data_is_refused_in_every_graph_though_its_checksum_is_right(folder: Path, name: str) -> None:
    network = tiny_model_proto()
    onnx.external_data_helper.set_external_data(network.graph.initializer[0], location="weights.bin")
    (folder / name).write_bytes(network.SerializeToString())
    index = FILES.index(name)
    rewrite(folder, lambda description: description["files"][index].update(sha256=sha256_of(folder / name)))
    assert_refused(folder, rf"{name}: a tensor keeps its values in another file \(external data\)")


def test_files_that_are_exchanged_are_refused(folder: Path) -> None:
    (folder / GRAPHS["fp16"]).write_bytes((folder / CARD).read_bytes())
    assert_refused(folder, r"model\.fp16\.onnx was altered")


def test_a_precision_that_the_bundle_has_not_is_a_sentence(folder: Path) -> None:
    rewrite(folder, lambda description: description["files"].pop(2))
    with pytest.raises(BundleError, match="bundle 'tiny' has no ONNX model of precision int8; it has fp32, fp16"):
        load_bundle(folder).model_path("int8")


def test_a_changed_byte_of_the_description_never_ends_in_another_error(folder: Path) -> None:
    """Bytes between values, and those of the checksum's name, may change without harm: then it loads."""
    file = folder / "bundle.json"
    content = file.read_bytes()
    for index in range(0, len(content), 3):
        altered = bytearray(content)
        altered[index] ^= 1 << index % 7
        file.write_bytes(altered)
        try:
            load_bundle(folder)
        except BundleError as refusal:
            assert len(str(refusal).splitlines()) == 1  # noqa: PT017 - it need not be raised


def test_a_link_in_the_descriptions_place_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "bundle.json").rename(tmp_path / "moved.json")
    (folder / "bundle.json").symlink_to(tmp_path / "moved.json")
    assert_refused(folder, r"bundle\.json is a link")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda description: description["preprocessing"].update(spacing_mm=[10**400, 1, 1]), "spacing_mm"),
        (lambda description: description["tile_plan"].update(tile_shape=[10**400, 1, 1]), "tile_shape"),
        (lambda description: description["tile_plan"].update(step=10**400), "step"),
        (lambda description: description["preprocessing"]["scaling"].update(sd_hu=10**400), "sd_hu"),
    ],
)
def test_a_number_too_large_for_a_float_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(folder, change)
    assert_refused(folder, message)


@pytest.mark.parametrize("precision", [None, "fp99", "FP32", ""])
def test_a_graph_without_a_known_precision_is_refused(folder: Path, precision: str | None) -> None:
    rewrite(folder, lambda description: description["files"][0].update(precision=precision))
    assert_refused(folder, r"precision of model\.onnx")


def test_two_graphs_of_one_precision_are_refused(folder: Path) -> None:
    rewrite(folder, lambda description: description["files"][1].update(precision="fp32"))
    assert_refused(folder, "two graphs of precision fp32")


@pytest.mark.parametrize("field", ["name", "version"])
@pytest.mark.parametrize("text", ["\ud800", "a\nb", "\x1b[2J"], ids=["surrogate", "line end", "escape"])
def test_a_name_or_version_that_cannot_be_printed_on_a_line_is_refused(folder: Path, field: str, text: str) -> None:
    rewrite(folder, lambda description: description.update({field: text}))
    assert_refused(folder, field)


@pytest.mark.parametrize(
    "change",
    [
        lambda description: description["preprocessing"].update(spacing_mm=[2.0, 1.5, 1.6]),
        lambda description: description["preprocessing"]["scaling"].update(lower_hu=-1100.0),
        lambda description: description.update(version="1.2.4"),
        lambda description: description.update(parity={"results": []}),
    ],
    ids=["spacing", "window", "version", "parity"],
)
def test_an_altered_value_of_the_description_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    alter(folder, change)
    assert_refused(folder, r"bundle\.json was altered")
