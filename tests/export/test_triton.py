"""Triton's own protobuf reads what is written, and its shapes are those that ONNX Runtime sees in the same file.

There is no Triton server here: that one loads the repository is not tested.
"""

import json
import subprocess
import sys
from dataclasses import replace

import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from onnx import helper
from phantom import PHANTOM_SPACING_MM, TILE_SHAPE, tiny_description, tiny_model
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from covidseg_export.to_onnx import export_onnx
from covidseg_export.triton import write_model_repository
from covidseg_runtime.bundle import load_bundle, sha256_of
from covidseg_runtime.engines.plan_cache import GpuIdentity, PlanKey, TensorRtIdentity, store_plan
from covidseg_runtime.errors import BundleError, EngineError, OutputError, SettingsError
from covidseg_train.unet import UNet3d, UNetSpec

FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}


def write_bundle(folder, models, **changes):
    """A bundle of one graph a precision."""
    folder.mkdir()
    description = tiny_description(b"")
    description["files"] = []
    for precision, content in models.items():
        path = folder / FILES[precision]
        path.write_bytes(content)
        entry = {"role": "model", "name": path.name, "sha256": sha256_of(path), "precision": precision}
        description["files"].append(entry)
    (folder / "bundle.json").write_text(json.dumps(description | changes))
    return load_bundle(folder)


@pytest.fixture
def bundle(tmp_path):
    """Three files, each of its own bytes, as three precisions have."""
    named = onnx.load_from_string(tiny_model())
    models = {}
    for precision in FILES:
        named.producer_name = precision
        models[precision] = named.SerializeToString()
    return write_bundle(tmp_path / "bundle", models)


def read_config(model_folder):
    return text_format.Parse((model_folder / "config.pbtxt").read_text(), ModelConfig())


def seen_by_triton(tensor):
    return tensor.name, DataType.Name(tensor.data_type), list(tensor.dims)


def seen_by_onnxruntime(tensor):
    types = {"tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16"}
    return tensor.name, types[tensor.type], tensor.shape[1:]


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_config_fits_graph(model_folder):
    config = read_config(model_folder)
    session = onnxruntime.InferenceSession(model_folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [seen_by_triton(tensor) for tensor in config.input] == [
        seen_by_onnxruntime(tensor) for tensor in session.get_inputs()
    ]
    assert [seen_by_triton(tensor) for tensor in config.output] == [
        seen_by_onnxruntime(tensor) for tensor in session.get_outputs()
    ]


def test_every_graph_of_the_bundle_is_a_model_of_its_own(tmp_path, bundle):
    folders = write_model_repository(bundle, tmp_path / "triton")
    assert folders == tuple(tmp_path / "triton" / f"tiny-{precision}" for precision in FILES)
    for folder, name in zip(folders, FILES.values(), strict=True):
        assert (folder / "1" / "model.onnx").read_bytes() == (bundle.folder / name).read_bytes()
        assert read_config(folder).name == folder.name
        assert_config_fits_graph(folder)


def test_the_config_says_backend_batch_labels_and_place(tmp_path, bundle):
    folder, *_ = write_model_repository(bundle, tmp_path / "triton", max_batch=3, instance_kind="KIND_CPU")
    config = read_config(folder)
    assert (config.backend, config.platform, config.max_batch_size) == ("onnxruntime", "", 3)
    assert config.HasField("dynamic_batching")
    assert [group.kind for group in config.instance_group] == [ModelInstanceGroup.KIND_CPU]
    assert config.output[0].label_filename == "labels.txt"
    assert (folder / "labels.txt").read_text().splitlines() == [
        "background",
        "left lung",
        "right lung",
        "infection",
    ]


def test_what_the_exporter_writes_fits_its_config(tmp_path):
    network = UNet3d(UNetSpec(widths=(4, 8), strides=((2, 2, 1),), supervised_levels=1)).eval()
    torch.manual_seed(0)
    bundle = write_bundle(
        tmp_path / "bundle",
        {"fp32": export_onnx(network, (16, 16, 8))},
        classes=["background", "lung", "infection"],
        tile_plan={"tile_shape": [16, 16, 8], "step": 0.5},
    )
    (folder,) = write_model_repository(bundle, tmp_path / "triton")
    assert seen_by_triton(read_config(folder).input[0]) == ("tiles", "TYPE_FP32", [1, 16, 16, 8])
    assert_config_fits_graph(folder)


def graph_of(type_=onnx.TensorProto.FLOAT, batch="n", inputs=("tiles",), lengths=TILE_SHAPE):
    shape = [batch, 1, *lengths]
    given = [helper.make_tensor_value_info(name, type_, shape) for name in inputs]
    made = [helper.make_tensor_value_info("logits", type_, shape)]
    graph = helper.make_graph([helper.make_node("Sum", inputs, ["logits"])], "g", given, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def test_a_graph_of_half_precision_tiles_is_said_to_take_them(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", {"fp16": graph_of(onnx.TensorProto.FLOAT16)})
    (folder,) = write_model_repository(bundle, tmp_path / "triton")
    assert seen_by_triton(read_config(folder).input[0]) == ("tiles", "TYPE_FP16", [1, *TILE_SHAPE])
    assert_config_fits_graph(folder)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (graph_of(batch=1), "tiles must have a free batch"),
        (graph_of(lengths=(16, "y", 16)), "otherwise a fixed shape"),
        (graph_of(onnx.TensorProto.DOUBLE), "must be float32 or float16"),
    ],
)
def test_a_graph_that_triton_cannot_batch_is_refused(tmp_path, graph, message):
    bundle = write_bundle(tmp_path / "bundle", {"fp32": graph})
    with pytest.raises(BundleError, match=message):
        write_model_repository(bundle, tmp_path / "triton")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_client_file_tells_how_to_use_every_model(tmp_path, bundle):
    write_model_repository(bundle, tmp_path / "triton", max_batch=2)
    client = json.loads((tmp_path / "triton" / "covidseg.json").read_text())
    assert client["models"]["tiny-fp16"] == {"graph": "model.fp16.onnx", "precision": "fp16", "max_batch": 2}
    assert list(client["models"]) == ["tiny-fp32", "tiny-fp16", "tiny-int8"]
    assert client["label_of_class"] == [0, 1, 2, 3]
    assert client["bundle"]["preprocessing"]["spacing_mm"] == list(PHANTOM_SPACING_MM)
    assert client["bundle"]["tile_plan"].items() >= {"tile_shape": list(TILE_SHAPE), "step": 0.5}.items()


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("covidseg default 2.0", "covidseg-default-2-0-fp32"),
        ("../../etc", "etc-fp32"),
        ('a" b"', "a-b-fp32"),
        ("肺", "fp32"),
    ],
)
def test_model_names_are_safe_for_folders_and_urls(tmp_path, name, safe):
    bundle = write_bundle(tmp_path / "bundle", {"fp32": tiny_model()}, name=name)
    (folder,) = write_model_repository(bundle, tmp_path / "triton")
    assert folder == tmp_path / "triton" / safe
    assert read_config(folder).name == safe


@pytest.fixture
def plan(bundle, tmp_path, monkeypatch):
    """A plan of the fp16 graph for at most four tiles; its bytes only stand for one."""
    monkeypatch.setenv("COVIDSEG_PLAN_CACHE", str(tmp_path / "plans"))
    sha256 = sha256_of(bundle.model_path("fp16"))
    tensorrt, gpu = TensorRtIdentity("tensorrt", "11.4.0.106"), GpuIdentity("NVIDIA L4", "8.9", "13.0")
    return store_plan(b"stands for a plan", PlanKey(sha256, tensorrt, gpu, TILE_SHAPE, (2, 4), {}), "f16")


def test_a_plan_is_a_tensorrt_model_of_no_larger_batch_than_it_was_built_for(tmp_path, bundle, plan):
    *_, folder = write_model_repository(bundle, tmp_path / "triton", instance_kind="KIND_CPU", plans=[plan])
    config = read_config(folder)
    assert folder.name == "tiny-fp16-tensorrt"
    assert (folder / "1" / "model.plan").read_bytes() == b"stands for a plan"
    assert (config.backend, config.platform, config.max_batch_size) == ("", "tensorrt_plan", 4)
    assert seen_by_triton(config.output[0]) == ("logits", "TYPE_FP32", [4, *TILE_SHAPE])
    assert [group.kind for group in config.instance_group] == [ModelInstanceGroup.KIND_GPU]
    client = json.loads((tmp_path / "triton" / "covidseg.json").read_text())
    assert client["models"]["tiny-fp16-tensorrt"]["gpu"] == "NVIDIA L4 (compute capability 8.9)"
    assert client["models"]["tiny-fp16-tensorrt"]["tensorrt"] == "tensorrt 11.4.0.106"


def test_an_altered_plan_and_one_of_another_graph_are_refused(tmp_path, bundle, plan):
    other = replace(plan, key=replace(plan.key, model_sha256="cd" * 32))
    with pytest.raises(SettingsError, match="was built of no graph of this bundle"):
        write_model_repository(bundle, tmp_path / "triton", plans=[other])
    with pytest.raises(SettingsError, match="two models would be named tiny-fp16-tensorrt"):
        write_model_repository(bundle, tmp_path / "triton", plans=[plan, plan])
    plan.path.write_bytes(b"something else")
    with pytest.raises(EngineError, match="is not the TensorRT plan that was built"):
        write_model_repository(bundle, tmp_path / "triton", plans=[plan])
    assert not (tmp_path / "triton").exists()


def test_a_batch_of_no_tiles_is_refused(tmp_path, bundle):
    with pytest.raises(SettingsError, match="max_batch is 0: expected 1 or more"):
        write_model_repository(bundle, tmp_path / "triton", max_batch=0)


def test_an_earlier_repository_is_replaced_whole(tmp_path, bundle):
    write_model_repository(bundle, tmp_path / "triton")
    (tmp_path / "triton" / "tiny-int8" / "2").mkdir()
    write_model_repository(replace(bundle, files=bundle.files[:1]), tmp_path / "triton")
    assert sorted(content(tmp_path / "triton")) == [
        "covidseg.json",
        "tiny-fp32/1/model.onnx",
        "tiny-fp32/config.pbtxt",
        "tiny-fp32/labels.txt",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "triton"]


def test_a_folder_that_is_no_repository_of_ours_is_left_alone(tmp_path, bundle):
    before = content(bundle.folder)
    with pytest.raises(OutputError, match="is not a model repository of covidseg; give the name of a new folder"):
        write_model_repository(bundle, bundle.folder)
    assert content(bundle.folder) == before


def test_a_failure_half_way_leaves_the_earlier_repository(tmp_path, bundle, monkeypatch):
    write_model_repository(bundle, tmp_path / "triton")
    before = content(tmp_path / "triton")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("covidseg_export.write_bundle.os.fsync", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        write_model_repository(bundle, tmp_path / "triton", max_batch=1)
    assert content(tmp_path / "triton") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "triton"]


def test_it_works_without_torch(tmp_path, bundle):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from covidseg_export.triton import write_model_repository\n"
        "from covidseg_runtime.bundle import load_bundle\n"
        "write_model_repository(load_bundle(Path(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    subprocess.run([sys.executable, "-c", program, bundle.folder, tmp_path / "triton"], check=True)
    assert (tmp_path / "triton" / "covidseg.json").is_file()
