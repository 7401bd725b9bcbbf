"""Refuses ONNX files that no engine should see, without the onnx package.

An ONNX tensor may keep its values in a second file ("external data"), named by a path inside
the model. A bundle's checksum covers only the model itself, and such a path may leave the
folder, so no engine gets to see a model that has one.

Engines also do what a file of a few bytes tells them to, while they open it: loop without end, compute constants of
any size, count up to an operator set of 2^62. A model is therefore one graph of operators that the networks of
covidseg are made of, from one input to one output, whose constants are not computed from others.

The walk reads the protobuf wire format: every field is a key (number and wire type) and a value;
a length-delimited value is bytes, or a message of the same form. The field numbers are those of
onnx.proto, which never reuses a number.
"""

from __future__ import annotations

import math
import mmap
import reprlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from covidseg_runtime.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64  # graphs within graphs; exported networks have 1 to 4
_MAX_VARINT_BYTES = 10

# message -> field number -> message in that field. Fields that hold neither a tensor nor what is judged are left out.
_CHILDREN: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "Model": {7: "Graph", 8: "Opset", 20: "Training", 25: "Function"},
        "Training": {1: "Graph", 2: "Graph"},
        "Function": {7: "Node", 11: "Attribute"},
        "Graph": {1: "Node", 5: "Tensor", 11: "ValueInfo", 12: "ValueInfo", 15: "SparseTensor"},
        "Node": {5: "Attribute"},
        "Attribute": {
            5: "Tensor",
            6: "Graph",
            10: "Tensor",
            11: "Graph",
            22: "SparseTensor",
            23: "SparseTensor",
        },
        "SparseTensor": {1: "Tensor", 2: "Tensor"},
        "Tensor": {},
        "Opset": {},
        "ValueInfo": {2: "Type"},
        "Type": {1: "TensorType"},
        "TensorType": {2: "Shape"},
        "Shape": {1: "Dimension"},
        "Dimension": {},
    }
)
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_TRAINING, _MODEL_FUNCTION = 7, 8, 20, 25
_GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_DOMAIN = 1, 2, 4, 7
_OPSET_VERSION = 2
_NAME = 1  # of an input or an output
_DIMENSIONS = (2, 1, 2, 1)  # in an input: type, tensor type, shape, dimensions
_LENGTH = 1  # of a dimension
_LARGEST_NUMBER = 2**29 - 1  # of a field

_LATEST_OPSET = 100  # 26 in 2026
_DOMAINS = ("", "ai.onnx")  # two names of the same
_LARGEST_TILE = 2**25  # voxels; a tile of 256 x 256 x 256 has half of them
_MOST_FIELDS = 200_000  # exported networks have some thousand; this many are read in half a second
# None of them loops, and none but a convolution or a concatenation gives more than it takes. Shape is not among them:
# it makes a constant out of the tile.
_OPERATORS = frozenset((
    "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv", "ConvTranspose",
    "DequantizeLinear", "Div", "Elu", "Exp", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool",
    "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization",
    "LeakyRelu", "Log", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pow", "QuantizeLinear", "Reciprocal",
    "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Softplus", "Split",
    "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Transpose", "Unsqueeze",
))  # fmt: skip
# Engines compute constants from constants as they open a model; these give no more than they take.
_CONSTANT_OPERATORS = frozenset((
    "Cast", "Constant", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose",
    "Unsqueeze",
))  # fmt: skip


def refuse_unsafe_model(path: Path) -> None:
    """Check that the ONNX file at `path` keeps every value inside itself and is a network as covidseg exports them.

    The file is mapped, not loaded, and tensor values are stepped over, not read.

    Raises:
        BundleError: if a tensor points at another file, if the graph is another than a network's, if the file is not
            an ONNX model, or if it cannot be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as model:
            _walk_model(model, path.name)
            _judge_network(model, path.name)
    except (OSError, ValueError) as exc:  # ValueError: an empty file cannot be mapped
        raise BundleError(f"{path.name}: cannot be read as an ONNX model ({exc})") from exc


def tensor_names(path: Path) -> tuple[str, str]:
    """Names of the input and of the output of a file that `refuse_unsafe_model` let pass.

    Raises:
        BundleError: if it cannot be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as model:
            graphs = [span for number, *span in _messages(model, 0, len(model), path.name) if number == _MODEL_GRAPH]
            start, end = graphs[0]
            messages = list(_messages(model, start, end, path.name))
            tiles, logits = (_name_of(model, messages, wanted, path.name) for wanted in (_GRAPH_INPUT, _GRAPH_OUTPUT))
    except (OSError, ValueError, IndexError) as exc:
        raise BundleError(f"{path.name}: cannot be read as an ONNX model ({exc})") from exc
    return tiles, logits


def _name_of(model: mmap.mmap, messages: Sequence[tuple[int, int, int]], wanted: int, name: str) -> str:
    """Name of the first input or output of a graph."""
    spans = [(start, end) for number, start, end in messages if number == wanted]
    return _texts(model, *spans[0], name)[_NAME][0].decode(errors="replace")


def _walk_model(model: mmap.mmap, name: str) -> None:
    has_graph, seen = False, 0
    pending = [("Model", 0, len(model), 0)]
    while pending:
        message, start, stop, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise BundleError(f"{name}: graphs are nested more than {_MAX_DEPTH} deep")
        children = _CHILDREN[message]
        for number, wire_type, value, end in _fields(model, start, stop, name):
            seen += 1
            if message == "Tensor" and _is_external(number, wire_type, value):
                raise BundleError(
                    f"{name}: a tensor keeps its values in another file (external data); "
                    "a bundle's model must hold everything itself"
                )
            if wire_type == _BYTES and number in children:
                has_graph = has_graph or (message == "Model" and number == _MODEL_GRAPH)
                pending.append((children[number], value, end, depth + 1))
            if seen > _MOST_FIELDS:
                raise BundleError(f"{name}: has more than {_MOST_FIELDS:,} fields; is it an ONNX model?")
    if not has_graph:
        raise BundleError(f"{name}: is not an ONNX model (it holds no graph)")


def _judge_network(model: mmap.mmap, name: str) -> None:
    """Refuse a model that is more than one graph of known operators from one input to one output."""
    messages = list(_messages(model, 0, len(model), name))
    numbers = [number for number, *_ in messages]
    if numbers.count(_MODEL_GRAPH) != 1 or {_MODEL_TRAINING, _MODEL_FUNCTION} & set(numbers):
        raise BundleError(f"{name}: holds functions, training or several graphs; a bundle's model is one graph")
    for number, start, end in messages:
        if number == _MODEL_OPSET:
            _judge_opset(model, start, end, name)
        elif number == _MODEL_GRAPH:
            _judge_graph(model, start, end, name)


def _judge_opset(model: mmap.mmap, start: int, end: int, name: str) -> None:
    for number, _, version, _ in _fields(model, start, end, name):
        if number == _OPSET_VERSION and version > _LATEST_OPSET:
            raise BundleError(f"{name}: wants operator set {version}; the latest known is below {_LATEST_OPSET}")


def _judge_graph(model: mmap.mmap, start: int, end: int, name: str) -> None:
    messages: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, inner_start, inner_end in _messages(model, start, end, name):
        messages[number].append((inner_start, inner_end))
    inputs, outputs = messages[_GRAPH_INPUT], messages[_GRAPH_OUTPUT]
    if (len(inputs), len(outputs)) != (1, 1):
        raise BundleError(f"{name}: has {len(inputs)} inputs and {len(outputs)} outputs; one of each is expected")
    tile = _voxels_of(model, *inputs[0], name)
    if tile > _LARGEST_TILE:
        raise BundleError(f"{name}: takes tiles of {tile} voxels; {_LARGEST_TILE} at most are expected")
    # What depends on the tile. Nodes stand in the order of computation, by the standard.
    computed = set(_texts(model, *inputs[0], name)[_NAME])
    for node in messages[_GRAPH_NODE]:
        texts = _texts(model, *node, name)
        _judge_operator(texts, computed, name)
        if not computed.isdisjoint(texts[_NODE_INPUT]):
            computed.update(texts[_NODE_OUTPUT])


def _voxels_of(model: mmap.mmap, start: int, end: int, name: str) -> int:
    """Product of the lengths that an input fixes."""
    spans = [(start, end)]
    for wanted in _DIMENSIONS:
        inner = (message for span in spans for message in _messages(model, *span, name))
        spans = [(inner_start, inner_end) for number, inner_start, inner_end in inner if number == wanted]
    fields = (field for span in spans for field in _fields(model, *span, name))
    return math.prod(value for number, wire_type, value, _ in fields if (number, wire_type) == (_LENGTH, _VARINT))


def _judge_operator(texts: Mapping[int, list[bytes]], computed: set[bytes], name: str) -> None:
    domains, operators = ([text.decode(errors="replace") for text in texts[n]] for n in (_NODE_DOMAIN, _NODE_OPERATOR))
    given = reprlib.repr(" ".join((*domains, *operators)))
    if not (set(domains) <= set(_DOMAINS) and len(operators) == 1 and operators[0] in _OPERATORS):
        raise BundleError(f"{name}: has the operator {given}, which no network of covidseg has")
    if computed.isdisjoint(texts[_NODE_INPUT]) and operators[0] not in _CONSTANT_OPERATORS:
        raise BundleError(f"{name}: computes {given} from constants alone; a bundle's model holds the result")


def _texts(model: mmap.mmap, start: int, end: int, name: str) -> defaultdict[int, list[bytes]]:
    """The texts of a message by the number of their field."""
    texts: defaultdict[int, list[bytes]] = defaultdict(list)
    for number, value, after in _messages(model, start, end, name):
        texts[number].append(model[value:after])
    return texts


def _messages(model: mmap.mmap, start: int, end: int, name: str) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start, end) of what has a length: messages, texts and bytes."""
    for number, wire_type, value, after in _fields(model, start, end, name):
        if wire_type == _BYTES:
            yield number, value, after


def _is_external(number: int, wire_type: int, value: int) -> bool:
    if number == _TENSOR_EXTERNAL_DATA:
        return True
    # 0 is DEFAULT (inside this file); every other value, known or not, is refused.
    return number == _TENSOR_DATA_LOCATION and (wire_type != _VARINT or value != 0)


def _fields(model: mmap.mmap, start: int, stop: int, name: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, varint value or value's start, value's end)."""
    position = start
    while position < stop:
        key, position = _varint(model, position, stop, name)
        number, wire_type = key >> 3, key & 7
        if not 1 <= number <= _LARGEST_NUMBER:
            # Engines keep 32 bits of a key: what is 2^29 + 13 here would be 13, external data, to them.
            raise BundleError(f"{name}: is not an ONNX model (field number {number})")
        if wire_type == _VARINT:
            value, end = _varint(model, position, stop, name)
        elif wire_type == _BYTES:
            length, value = _varint(model, position, stop, name)
            end = value + length
        elif wire_type in (_FIXED32, _FIXED64):
            value, end = position, position + (4 if wire_type == _FIXED32 else 8)
        else:
            raise BundleError(f"{name}: is not an ONNX model (wire type {wire_type})")
        if end > stop:
            raise BundleError(f"{name}: is cut short or is not an ONNX model")
        yield number, wire_type, value, end
        position = end


def _varint(model: mmap.mmap, position: int, stop: int, name: str) -> tuple[int, int]:
    """Read one base-128 number; return it and the position after it."""
    value = 0
    for shift in range(_MAX_VARINT_BYTES):
        if position + shift >= stop:
            raise BundleError(f"{name}: is cut short or is not an ONNX model")
        byte = model[position + shift]
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    raise BundleError(f"{name}: is not an ONNX model (a number of more than 10 bytes)")
