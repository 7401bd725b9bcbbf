"""A bundle → a model repository for NVIDIA Triton Inference Server, one model a graph and one a TensorRT plan.

```
FOLDER/
  covidseg.json                what a client needs: preprocessing, tile plan, classes, and the models below
  default-fp32/                backend onnxruntime
    config.pbtxt  labels.txt  1/model.onnx
  default-fp16-tensorrt/       backend tensorrt, for the GPU that the plan was built for
    config.pbtxt  labels.txt  1/model.plan
```

Triton computes logits of tiles. Preparing a scan, tiling it and putting tiles together stay with the client. Needs
onnx, not torch.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import onnx

from covidseg_export.write_bundle import json_bytes, write_folder
from covidseg_runtime.bundle import ModelBundle, ModelFile, bundle_to_json
from covidseg_runtime.engines.plan_cache import StoredPlan, read_plan
from covidseg_runtime.errors import BundleError, OutputError, SettingsError

CLIENT_FILE = "covidseg.json"

InstanceKind = Literal["KIND_GPU", "KIND_CPU"]

_SCHEMA_VERSION = 1
_LABELS_FILE = "labels.txt"
_UNSAFE = re.compile(r"[^A-Za-z0-9_]+")
_TRITON_TYPES: Mapping[int, str] = MappingProxyType(
    {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.FLOAT16: "TYPE_FP16"}
)


@dataclass(frozen=True)
class TritonTensor:
    """An input or output as Triton is told of it.

    Attributes:
        name: Its name in the graph.
        data_type: Such as "TYPE_FP32".
        dims: Its shape without the batch.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class TritonModel:
    """A model of the repository.

    Attributes:
        name: Its name, which is its folder's.
        backend: `backend: "onnxruntime"` or `platform: "tensorrt_plan"`, as config.pbtxt says it.
        file_name: What Triton looks for in the version's folder.
        content: That file's bytes.
        max_batch: The most tiles Triton computes at once.
        instance_kind: Where it computes.
        origin: What covidseg.json says of it.
    """

    name: str
    backend: str
    file_name: str
    content: bytes
    max_batch: int
    instance_kind: InstanceKind
    origin: Mapping[str, Any]


def write_model_repository(
    bundle: ModelBundle,
    folder: Path,
    *,
    max_batch: int = 8,
    instance_kind: InstanceKind = "KIND_GPU",
    plans: Sequence[StoredPlan] = (),
) -> tuple[Path, ...]:
    """Write every graph of a bundle, and every plan given, as a model; the folder appears whole or not at all.

    Args:
        bundle: A bundle that `load_bundle` verified.
        folder: The repository. An earlier one that covidseg wrote is replaced; anything else is left alone.
        max_batch: The most tiles Triton computes at once; a plan never takes more than it was built for.
        instance_kind: Where ONNX Runtime computes; plans always run on a GPU.
        plans: TensorRT plans of the bundle's graphs, see `find_plan`.

    Returns:
        The models' folders.

    Raises:
        SettingsError: If `max_batch` is no number of tiles, a plan was built of no graph of the bundle, or two
            models would have one name.
        BundleError: If the bundle has no graph that Triton can batch.
        EngineError: If a plan was altered.
        OutputError: If `folder` is something else, or cannot be written.
    """
    if max_batch < 1:
        raise SettingsError(f"max_batch is {max_batch}: expected 1 or more.")
    graphs = _graphs(bundle)
    models = [
        *(_onnx_model(bundle, graph, max_batch, instance_kind) for graph in graphs),
        *(_plan_model(bundle, _graph_of(plan, graphs), plan, max_batch) for plan in plans),
    ]
    _refuse_same_names(models)
    if folder.exists() and not (folder / CLIENT_FILE).is_file():
        raise OutputError(f"{folder} exists and is not a model repository of covidseg; give the name of a new folder.")
    write_folder(folder, dict(_repository_files(bundle, models)))
    return tuple(folder / model.name for model in models)


def triton_config(model: TritonModel, tiles: TritonTensor, logits: TritonTensor) -> str:
    """The content of config.pbtxt: a ModelConfig of Triton as protobuf text."""
    return f"""\
name: {json.dumps(model.name)}
{model.backend}
max_batch_size: {model.max_batch}
input [{_describe(tiles)}]
output [{_describe(logits, f" label_filename: {json.dumps(_LABELS_FILE)}")}]
instance_group [{{ kind: {model.instance_kind} count: 1 }}]
dynamic_batching {{ }}
"""


def read_tensors(graph: Path) -> tuple[TritonTensor, TritonTensor]:
    """The input and the output of an ONNX file; the guard has seen that there is one of each.

    Raises:
        BundleError: If they are not fixed but for the batch.
    """
    network = onnx.load(graph, load_external_data=False).graph
    return _read_tensor(graph.name, network.input[0]), _read_tensor(graph.name, network.output[0])


def _read_tensor(file_name: str, value: onnx.ValueInfoProto) -> TritonTensor:
    tensor = value.type.tensor_type
    batch, *fixed = tensor.shape.dim or [None]
    if batch is None or batch.HasField("dim_value") or not all(dim.dim_value > 0 for dim in fixed):
        raise BundleError(f"{file_name}: {value.name} must have a free batch and otherwise a fixed shape for Triton.")
    if tensor.elem_type not in _TRITON_TYPES:
        raise BundleError(f"{file_name}: {value.name} must be float32 or float16 for Triton.")
    return TritonTensor(value.name, _TRITON_TYPES[tensor.elem_type], tuple(dim.dim_value for dim in fixed))


def _describe(tensor: TritonTensor, more: str = "") -> str:
    dims = ", ".join(str(length) for length in tensor.dims)
    return f"{{ name: {json.dumps(tensor.name)} data_type: {tensor.data_type} dims: [{dims}]{more} }}"


def _graphs(bundle: ModelBundle) -> tuple[ModelFile, ...]:
    graphs = tuple(file for file in bundle.files if file.name.endswith(".onnx") and file.precision)
    if not graphs:
        raise BundleError(f"bundle {bundle.name!r} has no ONNX model of a stated precision.")
    return graphs


def _graph_of(plan: StoredPlan, graphs: Sequence[ModelFile]) -> ModelFile:
    for graph in graphs:
        if graph.sha256 == plan.key.model_sha256:
            return graph
    raise SettingsError(f"{plan.path} was built of no graph of this bundle; build its own: covidseg export --trt.")


def _onnx_model(bundle: ModelBundle, graph: ModelFile, max_batch: int, instance_kind: InstanceKind) -> TritonModel:
    return TritonModel(
        name=_safe_name(bundle, graph),
        backend='backend: "onnxruntime"',
        file_name="model.onnx",
        content=(bundle.folder / graph.name).read_bytes(),
        max_batch=max_batch,
        instance_kind=instance_kind,
        origin={"graph": graph.name, "precision": graph.precision},
    )


def _plan_model(bundle: ModelBundle, graph: ModelFile, plan: StoredPlan, max_batch: int) -> TritonModel:
    return TritonModel(
        name=f"{_safe_name(bundle, graph)}-tensorrt",
        backend='platform: "tensorrt_plan"',
        file_name="model.plan",
        content=read_plan(plan),
        max_batch=min(max_batch, plan.key.batch[1]),
        instance_kind="KIND_GPU",
        origin={
            "graph": graph.name,
            "precision": graph.precision,
            "tensorrt": str(plan.key.tensorrt),
            "gpu": str(plan.key.gpu),
        },
    )


def _refuse_same_names(models: Sequence[TritonModel]) -> None:
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"two models would be named {twice[0]}; give one graph a precision, and one plan a graph.")


def _safe_name(bundle: ModelBundle, graph: ModelFile) -> str:
    """Bundle and precision in letters that a folder, a URL and a metric may hold."""
    return _UNSAFE.sub("-", f"{bundle.name}-{graph.precision}").strip("-")


def _repository_files(bundle: ModelBundle, models: Sequence[TritonModel]) -> Iterator[tuple[str, bytes]]:
    labels = "".join(f"{name}\n" for name in bundle.classes).encode()
    for model in models:
        tiles, logits = read_tensors(bundle.folder / model.origin["graph"])
        yield f"{model.name}/config.pbtxt", triton_config(model, tiles, logits).encode()
        yield f"{model.name}/{_LABELS_FILE}", labels
        yield f"{model.name}/1/{model.file_name}", model.content
    client = {
        "schema_version": _SCHEMA_VERSION,
        "models": {model.name: {**model.origin, "max_batch": model.max_batch} for model in models},
        "label_of_class": bundle.label_of_class.tolist(),
        "bundle": bundle_to_json(bundle),
    }
    yield CLIENT_FILE, json_bytes(client)
