"""Inference requests and answers of KServe's v2 protocol: JSON, and tensors as JSON or as bytes behind it.

    header (JSON, of Inference-Header-Content-Length bytes)  tensors (float32, little endian, in C order)

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and its extension for binary tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.service.problems import Problem

DATATYPE = "FP32"
BINARY_HEADER = "Inference-Header-Content-Length"
_FLOAT32 = np.dtype("<f4")
_LARGEST_HEADER = 1 << 16  # where tensors are bytes
_MOST_OBJECTS = 64
_LONGEST_ID = 256
_TOGETHER = 1 << 16  # numbers of a JSON answer
_PIECE = 1 << 18  # bytes of a binary one
# What would make the answer another than the engine's, or needs memory that is shared with the caller.
_REFUSED_PARAMETERS = ("classification", "shared_memory_region")


@dataclass(frozen=True)
class Signature:
    """What a network takes and gives.

    Attributes:
        tiles: Name of its input.
        logits: Name of its output.
        tile_shape: (Z, Y, X).
        classes: Number of channels of the logits.
        most_tiles: In one request.
    """

    tiles: str
    logits: str
    tile_shape: tuple[int, int, int]
    classes: int
    most_tiles: int


@dataclass(frozen=True, eq=False)
class InferenceRequest:
    """What is asked for.

    Attributes:
        id: Of the caller; empty: none.
        tiles: (N, 1, Z, Y, X) float32.
        is_binary: Whether the logits are to come as bytes.
    """

    id: str
    tiles: NDArray[np.float32]
    is_binary: bool


def parse_request(body: bytes, header_length: str | None, signature: Signature) -> InferenceRequest:
    """Read a request.

    Args:
        body: All of it.
        header_length: Value of the HTTP header Inference-Header-Content-Length; None: all is JSON.
        signature: Of the network.

    Raises:
        Problem: If it is no request for this network.
    """
    header, binary = _split(body, header_length)
    request = _load(header, signature)
    tensor = _only(request, "inputs", signature.tiles)
    shape = _judge_shape(tensor, signature)
    is_binary = _flag(request, "binary_data_output", default=False)
    if request.get("outputs", []) != []:
        is_binary = _flag(_only(request, "outputs", signature.logits), "binary_data", default=is_binary)
    request_id = request.get("id", "")
    if not isinstance(request_id, str) or len(request_id) > _LONGEST_ID:
        raise _malformed(f"id must be a text of at most {_LONGEST_ID} characters")
    return InferenceRequest(request_id, _tiles(tensor, shape, binary), is_binary)


def request_schema(signature: Signature) -> dict[str, Any]:
    """The JSON of a request, for OpenAPI."""
    lengths = [{"const": length} for length in (1, *signature.tile_shape)]
    shape = [{"type": "integer", "minimum": 1, "maximum": signature.most_tiles}, *lengths]
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"const": signature.tiles},
            "datatype": {"const": DATATYPE},
            "shape": {"type": "array", "prefixItems": shape, "minItems": 5, "maxItems": 5},
            "data": {"type": "array", "description": "The numbers, in one list or in lists of the tensor's shape."},
            "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
        },
    }
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"const": signature.logits},
            "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
        },
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "maxLength": _LONGEST_ID},
            "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
            "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": tensor},
            "outputs": {"type": "array", "maxItems": 1, "items": output},
        },
    }


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not header_length.isdecimal() or len(header_length) > 9 or not 0 < int(header_length) <= len(body):
        raise _malformed(f"{BINARY_HEADER} must be the number of bytes of the JSON in front of the tensors")
    length = int(header_length)
    if length > _LARGEST_HEADER and length < len(body):
        raise _malformed(f"the JSON in front of binary tensors is larger than {_LARGEST_HEADER} bytes")
    return body[:length], body[length:]


def _load(header: bytes, signature: Signature) -> dict[str, Any]:
    # Python needs many times the memory of some JSON texts: what no request holds so many of is not even read.
    voxels = signature.most_tiles * math.prod(signature.tile_shape)
    if header.count(b"{") > _MOST_OBJECTS or header.count(b",") + header.count(b"[") > 2 * voxels + 1000:
        raise _malformed("the JSON holds more than any request for this model")
    try:
        request = json.loads(header, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _malformed("the body is no JSON") from error
    if not isinstance(request, dict):
        raise _malformed("a JSON object is expected")
    return request


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _only(request: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    tensors = request.get(kind)
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise _malformed(f"{kind} must be a list of one tensor, {name!r}")
    tensor: Mapping[str, Any] = tensors[0]
    if tensor.get("name") != name:
        raise _malformed(f"{kind} holds another tensor than {name!r}")
    refused = [one for one in _REFUSED_PARAMETERS if _parameters(tensor).get(one)]
    if refused:
        raise _malformed(f"the parameter {refused[0]} is not supported")
    return tensor


def _parameters(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    found = holder.get("parameters", {})
    if not isinstance(found, dict):
        raise _malformed("parameters must be an object")
    return found


def _flag(holder: Mapping[str, Any], name: str, *, default: bool) -> bool:
    found = _parameters(holder).get(name, default)
    if not isinstance(found, bool):
        raise _malformed(f"{name} must be true or false")
    return found


def _judge_shape(tensor: Mapping[str, Any], signature: Signature) -> tuple[int, ...]:
    shape, expected = tensor.get("shape"), [1, *signature.tile_shape]
    if tensor.get("datatype") != DATATYPE:
        raise _malformed(f"the datatype of {signature.tiles!r} must be {DATATYPE}")
    if (
        not isinstance(shape, list)
        or not all(type(length) is int for length in shape)
        or shape[1:] != expected
        or not 1 <= shape[0] <= signature.most_tiles
    ):
        raise _malformed(
            f"the shape of {signature.tiles!r} must be {['N', *expected]}, N from 1 to {signature.most_tiles}"
        )
    return tuple(shape)


def _tiles(tensor: Mapping[str, Any], shape: tuple[int, ...], binary: bytes) -> NDArray[np.float32]:
    count = math.prod(shape)
    size = _parameters(tensor).get("binary_data_size")
    if size is not None:
        if "data" in tensor or type(size) is not int or size != len(binary) or size != count * _FLOAT32.itemsize:
            raise _malformed(
                f"binary_data_size must be {count * _FLOAT32.itemsize}, as many bytes must follow the JSON, and there "
                "must be no data beside them"
            )
        return np.frombuffer(binary, _FLOAT32).reshape(shape).astype(np.float32, copy=False)
    if binary:
        raise _malformed("bytes follow the JSON that no binary_data_size tells of")
    try:
        with np.errstate(over="raise"):
            tiles = np.asarray(tensor.get("data"), np.float64).astype(np.float32)
    except (TypeError, ValueError, FloatingPointError, OverflowError) as error:
        raise _malformed("data must be a list of finite numbers") from error
    if tiles.size != count or tiles.shape not in ((count,), shape) or not np.isfinite(tiles).all():
        raise _malformed(f"data must hold {count} finite numbers, in one list or in lists of the tensor's shape")
    return tiles.reshape(shape)


def answer_header(
    request: InferenceRequest, model: tuple[str, str], signature: Signature, logits: NDArray[np.float32]
) -> dict[str, Any]:
    """The JSON of an answer, without the numbers.

    Args:
        request: What was asked for.
        model: Name and version.
        signature: Of the network.
        logits: (N, C, Z, Y, X).
    """
    output: dict[str, Any] = {"name": signature.logits, "datatype": DATATYPE, "shape": list(logits.shape)}
    if request.is_binary:
        output["parameters"] = {"binary_data_size": logits.size * _FLOAT32.itemsize}
    header: dict[str, Any] = {"model_name": model[0], "model_version": model[1], "outputs": [output]}
    return {"id": request.id, **header} if request.id else header


def binary_parts(header: Mapping[str, Any], logits: NDArray[np.float32]) -> tuple[bytes, memoryview]:
    """An answer as JSON and bytes behind it."""
    return json.dumps(header).encode(), np.ascontiguousarray(logits, _FLOAT32).data.cast("B")


def in_pieces(text: bytes, numbers: memoryview) -> Iterator[bytes]:
    """The same as an answer's body."""
    yield text
    for start in range(0, len(numbers), _PIECE):
        yield numbers[start : start + _PIECE].tobytes()


def json_parts(header: dict[str, Any], logits: NDArray[np.float32]) -> Iterator[bytes]:
    """An answer as JSON alone, part by part: as a whole it would take twenty times the memory of the logits."""
    header["outputs"][0]["data"] = []
    begin, end = json.dumps(header).encode().rsplit(b"[]", 1)
    yield begin + b"["
    numbers = logits.reshape(-1)
    for start in range(0, len(numbers), _TOGETHER):
        text = json.dumps(numbers[start : start + _TOGETHER].tolist())[1:-1]
        yield (b", " if start else b"") + text.encode()
    yield b"]" + end


def _malformed(why: str) -> Problem:
    return Problem(400, f"This is no inference request: {why}.")
