"""A bundle folder appears whole or not at all, and nothing else is overwritten."""

import pytest

from covidseg_export.write_bundle import json_bytes, write_bundle_folder
from covidseg_runtime.errors import BundleError, OutputError

FILES = {"bundle.json": json_bytes({"name": "a"}), "model.onnx": b"weights"}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_holds_the_files_and_leaves_no_draft(tmp_path):
    write_bundle_folder(tmp_path / "new" / "bundle", FILES)
    assert content(tmp_path / "new" / "bundle") == FILES
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bundle"]


def test_an_earlier_bundle_is_replaced_whole(tmp_path):
    folder = tmp_path / "bundle"
    write_bundle_folder(folder, {**FILES, "model.fp16.onnx": b"old"})
    write_bundle_folder(folder, FILES)
    assert content(folder) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years")
    with pytest.raises(BundleError, match="is not a model bundle; give the name of a new folder"):
        write_bundle_folder(tmp_path, FILES)
    assert content(tmp_path) == {"thesis.txt": b"ten years"}


def test_a_failure_half_way_leaves_the_earlier_bundle(tmp_path, monkeypatch):
    folder = tmp_path / "bundle"
    write_bundle_folder(folder, FILES)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("covidseg_export.write_bundle.os.fsync", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        write_bundle_folder(folder, {**FILES, "model.onnx": b"other"})
    assert content(folder) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_parent_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_bundle_folder(tmp_path / "file" / "bundle", FILES)
