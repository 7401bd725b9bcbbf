"""Refuses ONNX files that point at other files, without the onnx package.

An ONNX tensor may keep its values in a second file ("external data"), named by a path inside
the model. A bundle's checksum covers only the model itself, and such a path may leave the
folder, so no engine gets to see a model that has one.

The walk reads the protobuf wire format: every field is a key (number and wire type) and a value;
a length-delimited value is bytes, or a message of the same form. The field numbers are those of
onnx.proto, which never reuses a number.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from covidseg_runtime.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64  # graphs within graphs; exported networks have 1 to 4
_MAX_VARINT_BYTES = 10

# message -> field number -> message in that field. Fields that hold no tensor are left out.
_CHILDREN: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "Model": {7: "Graph", 20: "Training", 25: "Function"},
        "Training": {1: "Graph", 2: "Graph"},
        "Function": {7: "Node", 11: "Attribute"},
        "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
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
    }
)
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_MODEL_GRAPH = 7


def refuse_external_data(path: Path) -> None:
    """Check that the ONNX file at `path` keeps every value inside itself.

    The file is mapped, not loaded, and tensor values are stepped over, not read.

    Raises:
        BundleError: if a tensor points at another file, if the file is not an ONNX model, or if
            it cannot be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as model:
            _walk_model(model, path.name)
    except (OSError, ValueError) as exc:  # ValueError: an empty file cannot be mapped
        raise BundleError(f"{path.name}: cannot be read as an ONNX model ({exc})") from exc


def _walk_model(model: mmap.mmap, name: str) -> None:
    has_graph = False
    pending = [("Model", 0, len(model), 0)]
    while pending:
        message, start, stop, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise BundleError(f"{name}: graphs are nested more than {_MAX_DEPTH} deep")
        children = _CHILDREN[message]
        for number, wire_type, value, end in _fields(model, start, stop, name):
            if message == "Tensor" and _is_external(number, wire_type, value):
                raise BundleError(
                    f"{name}: a tensor keeps its values in another file (external data); "
                    "a bundle's model must hold everything itself"
                )
            if wire_type == _BYTES and number in children:
                has_graph = has_graph or (message == "Model" and number == _MODEL_GRAPH)
                pending.append((children[number], value, end, depth + 1))
    if not has_graph:
        raise BundleError(f"{name}: is not an ONNX model (it holds no graph)")


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
