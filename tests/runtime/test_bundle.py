"""A bundle is read only if it is whole, unaltered and self-contained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantom import tiny_description, tiny_model, tiny_model_proto, write_tiny_bundle

from covidseg_runtime.bundle import (
    bundle_to_json,
    default_bundle_path,
    find_bundle,
    list_bundles,
    load_bundle,
)
from covidseg_runtime.errors import BundleError
from covidseg_runtime.onnx_guard import refuse_unsafe_model
from covidseg_runtime.tiling import TileFit

TILES = {"tile_shape": [16, 16, 16], "step": 0.5}


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "bundle.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))


def test_a_bundle_says_what_its_file_says(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert (bundle.name, bundle.version) == ("tiny", "1.2.3")
    assert bundle.preprocessing.spacing_mm == (2.0, 1.5, 1.5)
    assert bundle.preprocessing.scaling.lower_hu == -1000.0
    assert bundle.tile_plan.tile_shape == (16, 16, 16)
    assert bundle.labels[3] == "infection"
    assert bundle.model_path() == tiny_bundle / "model.onnx"


def test_bundle_to_json_is_the_inverse_of_loading(tiny_bundle: Path) -> None:
    assert bundle_to_json(load_bundle(tiny_bundle)) == tiny_description(tiny_model())


def test_a_fit_of_the_tiles_is_read_and_written(tiny_bundle: Path) -> None:
    fit = {"multiple_of": [2, 4, 4], "largest_voxels": 40_000}
    _rewrite(tiny_bundle, lambda description: description["tile_plan"].update(fit=fit))
    bundle = load_bundle(tiny_bundle)
    assert bundle.tile_plan.fit == TileFit((2, 4, 4), 40_000)
    assert bundle_to_json(bundle)["tile_plan"]["fit"] == fit


def test_without_classes_the_network_tells_the_labels_apart(tiny_bundle: Path) -> None:
    _rewrite(tiny_bundle, lambda description: description.pop("classes"))
    bundle = load_bundle(tiny_bundle)
    assert bundle.classes == ("background", "left lung", "right lung", "infection")
    assert bundle.label_of_class.tolist() == [0, 1, 2, 3]


def test_a_network_may_leave_the_sides_to_the_runtime(tiny_bundle: Path) -> None:
    _rewrite(tiny_bundle, lambda description: description.update(classes=["background", "lung", "infection"]))
    assert load_bundle(tiny_bundle).label_of_class.tolist() == [0, 1, 3]


def test_unknown_classes_are_refused_with_those_that_are_known(tiny_bundle: Path) -> None:
    _rewrite(tiny_bundle, lambda description: description.update(classes=["background", "liver"]))
    with pytest.raises(BundleError, match=r"classes are \['background', 'liver'\]; expected .*'lung', 'infection'"):
        load_bundle(tiny_bundle)


def test_one_changed_byte_is_refused(tiny_bundle: Path) -> None:
    model = tiny_bundle / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        load_bundle(tiny_bundle)


def test_a_missing_file_is_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match="is missing"):
        load_bundle(tiny_bundle)


def test_a_link_is_refused_though_its_target_is_right(tiny_bundle: Path, tmp_path: Path) -> None:
    model = tiny_bundle / "model.onnx"
    shutil.move(model, tmp_path / "elsewhere.onnx")
    model.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="is a link"):
        load_bundle(tiny_bundle)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b.onnx", "..", "", "a\\b"])
def test_names_that_may_leave_the_folder_are_refused(tiny_bundle: Path, name: str) -> None:
    _rewrite(tiny_bundle, lambda description: description["files"][0].update(name=name))
    with pytest.raises(BundleError, match="name"):
        load_bundle(tiny_bundle)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_version", 2, "schema version 2"),
        ("schema_version", True, "schema version True"),
        ("labels", {"0": "background", "1": "infection"}, "labels"),
        ("tile_plan", {"tile_shape": [16, 16], "step": 0.5}, "tile_shape"),
        ("tile_plan", {"tile_shape": [16, 16, 1.5], "step": 0.5}, "tile_shape"),
        ("tile_plan", {"tile_shape": [16, 16, 0], "step": 0.5}, "tile_shape"),
        ("tile_plan", {"tile_shape": [16, 16, 16], "step": 0}, "step"),
        ("tile_plan", {**TILES, "fit": {"multiple_of": [0, 4, 4], "largest_voxels": 9}}, "multiple_of"),
        ("tile_plan", {**TILES, "fit": {"multiple_of": [4, 4, 4], "largest_voxels": 0}}, "largest_voxels"),
        ("tile_plan", {**TILES, "fit": {"multiple_of": [4, 4, 4], "largest_voxels": 1e12}}, "largest_voxels"),
        ("tile_plan", {**TILES, "fit": 16}, "fit"),
        ("tile_plan", {"tile_shape": [16, 16, 16], "step": "half"}, "step"),
        ("preprocessing", {}, "preprocessing|scaling|orientation"),
        ("files", [], "files"),
        ("files", ["model.onnx"], "files"),
        ("name", 7, "name"),
    ],
)
def test_a_contradictory_description_is_refused(tiny_bundle: Path, key: str, value: object, message: str) -> None:
    _rewrite(tiny_bundle, lambda description: description.update({key: value}))
    with pytest.raises(BundleError, match=message):
        load_bundle(tiny_bundle)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("orientation", "SPP", "orientation"),
        ("orientation", "xyz", "orientation"),
        ("spacing_mm", [1.0, 0.0, 1.0], "spacing_mm"),
        ("spacing_mm", [1.0, True, 1.0], "spacing_mm"),
        ("scaling", {"lower_hu": 5, "upper_hu": 5, "mean_hu": 0, "sd_hu": 1}, "scaling"),
        ("scaling", {"lower_hu": 0, "upper_hu": 5, "mean_hu": 0, "sd_hu": 0}, "scaling"),
    ],
)
def test_preprocessing_that_no_scan_can_have_is_refused(
    tiny_bundle: Path, key: str, value: object, message: str
) -> None:
    _rewrite(tiny_bundle, lambda description: description["preprocessing"].update({key: value}))
    with pytest.raises(BundleError, match=message):
        load_bundle(tiny_bundle)


@pytest.mark.parametrize("text", ["", "[1]", "{", "NaN", "[" * 20000])
def test_what_is_not_a_json_object_is_refused(tiny_bundle: Path, text: str) -> None:
    (tiny_bundle / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        load_bundle(tiny_bundle)


def _point_elsewhere(tensor: Any) -> None:
    import onnx

    onnx.external_data_helper.set_external_data(tensor, location="../../secret.bin")


def _initializer_outside(model: Any) -> None:
    _point_elsewhere(model.graph.initializer[0])


def _only_the_location_flag(model: Any) -> None:
    model.graph.initializer[0].data_location = 1


def _constant_outside(model: Any) -> None:
    import onnx

    constant = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(model.graph.initializer[0]))
    _point_elsewhere(constant)
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=constant))


def _inside_a_branch(model: Any) -> None:
    import onnx

    tensor = onnx.numpy_helper.from_array(np.ones(1, np.float32), "t")
    _point_elsewhere(tensor)
    branch = onnx.helper.make_graph([], "branch", [], [], [tensor])
    node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


def _sparse_outside(model: Any) -> None:
    import onnx

    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.float32), "s"))
    _point_elsewhere(sparse.values)
    model.graph.sparse_initializer.append(sparse)


def _function_outside(model: Any) -> None:
    import onnx

    constant = onnx.numpy_helper.from_array(np.ones(1, np.float32), "t")
    _point_elsewhere(constant)
    node = onnx.helper.make_node("Constant", [], ["y"], value=constant)
    opset = [onnx.helper.make_opsetid("", 17)]
    model.functions.append(onnx.helper.make_function("own", "F", [], ["y"], [node], opset))


@pytest.mark.parametrize(
    "change",
    [
        _initializer_outside,
        _only_the_location_flag,
        _constant_outside,
        _inside_a_branch,
        _sparse_outside,
        _function_outside,
    ],
)
def test_a_tensor_kept_in_another_file_is_found_wherever_it_is(tmp_path: Path, change: Callable[[Any], None]) -> None:
    model = tiny_model_proto()
    change(model)
    folder = write_tiny_bundle(tmp_path / "outside", model.SerializeToString())
    with pytest.raises(BundleError, match="external data"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a model",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x3b",
        b"\x08" + b"\xff" * 11,
        b"\x08\x09",
    ],
)
def test_what_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        refuse_unsafe_model(path)


def test_a_model_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model()[:-3])
    with pytest.raises(BundleError, match="cut short"):
        refuse_unsafe_model(path)


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    def message(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(40):  # graph in attribute in node in graph
        graph = message(1, message(5, message(6, graph)))
    path = tmp_path / "model.onnx"
    path.write_bytes(message(7, graph))
    with pytest.raises(BundleError, match="nested"):
        refuse_unsafe_model(path)


def test_a_bundle_is_found_by_its_folder(tiny_bundle: Path) -> None:
    assert find_bundle(str(tiny_bundle)) == tiny_bundle


def test_an_unknown_bundle_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no model bundle 'missing'"):
        find_bundle("missing")
    with pytest.raises(BundleError, match="no model bundle"):
        find_bundle(str(tmp_path))


def test_shipped_bundles_hold_the_default_and_all_load() -> None:
    folders = list_bundles()
    if not folders:
        pytest.skip("no bundle is shipped in this checkout")
    assert default_bundle_path() in folders
    assert find_bundle(None) == default_bundle_path()
    for folder in folders:
        assert load_bundle(folder).name == folder.name
