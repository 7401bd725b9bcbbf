"""Hostile model bundles by the seed: a sound small bundle, then a change of its description, its network or its files.

The sha256 in bundle.json is that of the changed network, so that the network gets past the checksum to the guard and
the engines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from hostile.scans import cut, flip_bits, splice
from hostile.wire import BYTES, Field, change_a_field, message, varint
from onnx import helper, numpy_helper
from phantom import tiny_description, tiny_model

_UNET = Path(__file__).with_name("small_unet.onnx")
UNET_TILE = [8, 8, 8]

_DEEP = "[" * 10_000 + "]" * 10_000
_VALUES: tuple[str, ...] = (  # as JSON
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "1e308",
    "1e999",
    "NaN",
    "-Infinity",
    "1" + "0" * 400,
    "1" + "0" * 5000,
    "[]",
    "{}",
    '""',
    '"x"',
    "[1, 2, 3]",
    "[1e300, 1e300, 1e300]",
    "[0, 0, 0]",
    "[100000, 100000, 100000]",
    '"\\ud800"',
    '"\\u0000"',
    '"a\\nb"',
    '"' + "long" * 5000 + '"',
    "[" * 900 + "]" * 900,
    _DEEP,
    "[" + "0, " * 20_000 + "0]",
)
_NAMES = (
    "../model.onnx",
    "/etc/passwd",
    "a/model.onnx",
    "..",
    ".",
    "bundle.json",
    "model.onnx\0",
    "C:\\m.onnx",
    "mödel.onnx",
)
_OPERATORS = (
    "Loop", "If", "Scan", "ConstantOfShape", "Tile", "Expand", "Range", "Pad", "Resize", "EPContext", "Einsum",
    "Gather", "Reshape", "Concat", "Split", "MaxPool", "Softmax", "LSTM", "TfIdfVectorizer", "StringSplit", "", "\xff",
    "Conv" * 1000, "ConvTranspose", "InstanceNormalization", "AveragePool", "Cast", "QuantizeLinear",
    "DequantizeLinear", "Identity",
)  # fmt: skip
_LENGTHS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 1000, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)


@dataclass(frozen=True)
class HostileBundle:
    """A bundle to be written.

    Attributes:
        changes: What was done to it.
        description: Bytes of bundle.json.
        model: Bytes of model.onnx.
        place: How its files lie: a key of `_PLACES`.
    """

    changes: tuple[str, ...]
    description: bytes
    model: bytes
    place: str = "files"

    def write(self, folder: Path) -> Path:
        """Put it into an empty folder; the bundle's folder comes back."""
        bundle = folder / "bundle"
        bundle.mkdir()
        (bundle / "bundle.json").write_bytes(self.description)
        (bundle / "model.onnx").write_bytes(self.model)
        _PLACES[self.place](bundle)
        return bundle


def hostile_bundle(random: Random) -> HostileBundle:
    """Draw one bundle: every third with another description, the others with another network."""
    model, tile_shape = random.choice(_sound_models())
    kind = random.random()
    if kind < 0.05:
        place = random.choice(sorted(_PLACES))
        return HostileBundle((place,), json.dumps(_description(model, tile_shape)).encode(), model, place)
    if kind < 0.35:
        name = random.choice((*sorted(_DESCRIPTION_CHANGES), *["other value"] * 5))
        text = _DESCRIPTION_CHANGES[name](_description(model, tile_shape), random)
        return HostileBundle((name,), text, model)
    changes = []
    for name in random.choices((*sorted(_MODEL_CHANGES), *["wire"] * 5), k=random.choice((1, 1, 2))):
        try:
            model = _MODEL_CHANGES[name](model, random)
        except (ValueError, IndexError, DecodeError):
            continue  # an earlier change left nothing that this one could change
        changes.append(name)
    return HostileBundle(tuple(changes), json.dumps(_description(model, tile_shape)).encode(), model)


def sound_model() -> bytes:
    """The exported network that the others are made from."""
    return _UNET.read_bytes()


def bundle_around(model: bytes, tile_shape: list[int]) -> HostileBundle:
    """A bundle whose only change is its model."""
    return HostileBundle(("model",), json.dumps(_description(model, tile_shape)).encode(), model)


@lru_cache
def _sound_models() -> tuple[tuple[bytes, list[int]], ...]:
    return (tiny_model(), tiny_description(b"")["tile_plan"]["tile_shape"]), (sound_model(), UNET_TILE)


def _description(model: bytes, tile_shape: list[int]) -> dict[str, Any]:
    description = tiny_description(model)
    description["tile_plan"]["tile_shape"] = list(tile_shape)  # changes are made in place
    return description


def _paths(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a description, such as ("files", 0, "name")."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [(*path, key), *_paths(inner, (*path, key))]]


def _other_value(description: dict[str, Any], random: Random) -> bytes:
    *outer, last = random.choice(_paths(description))
    parent: Any = description
    for key in outer:
        parent = parent[key]
    parent[last] = "PLACE"
    return json.dumps(description).replace('"PLACE"', random.choice(_VALUES)).encode()


def _missing_value(description: dict[str, Any], random: Random) -> bytes:
    *outer, last = random.choice(_paths(description))
    parent: Any = description
    for key in outer:
        parent = parent[key]
    del parent[last]
    return json.dumps(description).encode()


def _twice(description: dict[str, Any], random: Random) -> bytes:
    key = random.choice(sorted(description))
    return json.dumps(description).replace("{", f'{{"{key}": {random.choice(_VALUES)}, ', 1).encode()


def _in_the_card(description: dict[str, Any], random: Random) -> bytes:
    """What the runtime keeps without reading it."""
    description[random.choice(("network", "training", "metrics", "parity"))] = "PLACE"
    value = random.choice((*_VALUES, '{"results": [1, {"passed": true}]}', '{"results": 5}'))
    return json.dumps(description).replace('"PLACE"', value).encode()


def _other_file(description: dict[str, Any], random: Random) -> bytes:
    file = dict(description["files"][0])
    file[random.choice(("name", "name", "sha256", "role", "precision"))] = random.choice(_NAMES)
    description["files"] = random.choice(([file], [description["files"][0], file], [file] * 2, [file] * 1000))
    return json.dumps(description).encode()


def _text_change(change: Callable[[bytes, Random], bytes]) -> Callable[[dict[str, Any], Random], bytes]:
    return lambda description, random: change(json.dumps(description).encode(), random)


_DESCRIPTION_CHANGES: dict[str, Callable[[dict[str, Any], Random], bytes]] = {
    "other value": _other_value,
    "missing value": _missing_value,
    "key twice": _twice,
    "card": _in_the_card,
    "file": _other_file,
    "text bits": _text_change(flip_bits),
    "text cut": _text_change(cut),
    "text splice": _text_change(splice),
    "no UTF-8": _text_change(lambda text, random: text.replace(b"tiny", b"\xff\xc0\x80")),
    "UTF-16": _text_change(lambda text, random: text.decode().encode("utf-16")),
    "byte order mark": _text_change(lambda text, random: b"\xef\xbb\xbf" + text),
    "too long": _text_change(lambda text, random: text + b" " * random.choice((2**22, 2**25))),
    "no object": _text_change(lambda text, random: random.choice((*_VALUES, "", "{" * 9999, '{"":' * 9999)).encode()),
    "schema": lambda description, random: json.dumps(
        {**description, "schema_version": random.choice((0, 2, "1"))}
    ).encode(),
}


def _changed(change: Callable[[Any, Random], None]) -> Callable[[bytes, Random], bytes]:
    """A change of the parsed model."""

    def apply(model: bytes, random: Random) -> bytes:
        parsed = onnx.load_from_string(model)
        change(parsed, random)
        return bytes(parsed.SerializeToString())

    return apply


def _dims(model: Any, random: Random) -> None:
    tensor = random.choice(model.graph.initializer)
    if random.random() < 0.7 and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(_LENGTHS)
    else:
        tensor.dims.extend([random.choice(_LENGTHS)] * random.choice((1, 5, 100)))


def _tensor_values(model: Any, random: Random) -> None:
    tensor = random.choice(model.graph.initializer)
    tensor.raw_data = random.choice((b"", tensor.raw_data[:-1], tensor.raw_data[:-4], tensor.raw_data * 2, b"1234" * 3))
    if random.random() < 0.3:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([1.0] * random.choice((0, 1, 3, 1000)))


def _tensor_type(model: Any, random: Random) -> None:
    random.choice(model.graph.initializer).data_type = random.choice((*range(25), 999, -1, 2**31 - 1))


def _tensor_name(model: Any, random: Random) -> None:
    names = [tensor.name for tensor in model.graph.initializer]
    random.choice(model.graph.initializer).name = random.choice((*names, "", "tiles", "logits", "a" * 10_000))


def _operator(model: Any, random: Random) -> None:
    node = random.choice(model.graph.node)
    node.op_type = random.choice(_OPERATORS) if random.random() < 0.9 else node.op_type
    node.domain = random.choice(("", "", "", "ai.onnx", "ai.onnx.ml", "com.microsoft", "org.openvinotoolkit", "own"))


def _attribute(model: Any, random: Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    attributes = random.choice(nodes).attribute if nodes else random.choice(model.graph.node).attribute
    if not attributes or random.random() < 0.3:
        name = random.choice(
            ("pads", "strides", "dilations", "kernel_shape", "group", "axis", "output_shape", "auto_pad")
        )
        values = random.choice(([random.choice(_LENGTHS)] * 3, [random.choice(_LENGTHS)] * 6, random.choice(_LENGTHS)))
        attributes.append(helper.make_attribute(name, "VALID" if name == "auto_pad" else values))
        return
    attribute = random.choice(attributes)
    if attribute.ints and random.random() < 0.8:
        attribute.ints[random.randrange(len(attribute.ints))] = random.choice(_LENGTHS)
    elif random.random() < 0.5:
        attribute.i = random.choice(_LENGTHS)
        attribute.f = random.choice((float("nan"), float("inf"), -1.0, 1e38))
    else:
        attribute.type = random.choice(range(15))


def _edges(model: Any, random: Random) -> None:
    nodes = model.graph.node
    names = [name for node in nodes for name in (*node.input, *node.output)]
    node = random.choice(nodes)
    ends = random.choice((node.input, node.output))
    if ends and random.random() < 0.8:
        ends[random.randrange(len(ends))] = random.choice((*names, "", "nowhere"))
    else:
        ends.extend(random.choice((*names, "")) for _ in range(random.choice((1, 1, 1000))))


def _ends(model: Any, random: Random) -> None:
    """Inputs and outputs of the network: other shapes, other types, none, two."""
    ends = random.choice((model.graph.input, model.graph.output))
    tensor = ends[0].type.tensor_type
    kind = random.randrange(5)
    if kind < 2:
        tensor.shape.dim[random.randrange(len(tensor.shape.dim))].dim_value = random.choice(_LENGTHS)
    elif kind == 2:
        tensor.elem_type = random.choice(range(25))
    elif kind == 3:
        del ends[:]
    else:
        random.choice((tensor.ClearField, lambda _: ends.append(ends[0]), lambda _: ends[0].ClearField("type")))(
            "shape"
        )


def _versions(model: Any, random: Random) -> None:
    version = random.choice(_LENGTHS)
    if random.random() < 0.5:
        model.ir_version = version
    else:
        random.choice((model.opset_import[0], model.opset_import.add())).version = version


def _more_nodes(model: Any, random: Random) -> None:
    """Nodes that take memory or time without end, small as they are."""
    graph = model.graph
    ones = helper.make_tensor("ones", onnx.TensorProto.FLOAT, [1000, 1], np.ones(1000, np.float32))
    row = helper.make_tensor("row", onnx.TensorProto.FLOAT, [1, 1000], np.ones(1000, np.float32))
    shape = numpy_helper.from_array(np.full(3, random.choice((10**3, 10**4, 10**6))), "big")
    yes = numpy_helper.from_array(np.array(True), "yes")
    many = numpy_helper.from_array(np.array(2**62), "many")
    graph.initializer.extend((ones, row, shape, yes, many))
    kind = random.randrange(6)
    if kind == 0:
        graph.node.append(helper.make_node("ConstantOfShape", ["big"], ["bomb"]))
    elif kind == 1:
        graph.node.append(helper.make_node("Expand", ["row", "big"], ["bomb"]))
    elif kind == 2:  # doubles forty times
        names = ["ones", *(f"twice{index}" for index in range(39)), "bomb"]
        pairs = zip(names, names[1:], strict=False)
        graph.node.extend(helper.make_node("Concat", [one, one], [two], axis=0) for one, two in pairs)
    elif kind == 3:
        graph.node.append(helper.make_node("Add", ["ones", "row"], ["square"]))
        graph.node.append(helper.make_node("Pad", ["square", "big"], ["bomb"]))
    elif kind == 4:
        body_in = [helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []), *_booleans("go")]
        body = helper.make_graph([helper.make_node("Identity", ["go"], ["on"])], "body", body_in, _booleans("on"))
        graph.node.append(helper.make_node("Loop", ["many", "yes"], [], body=body))
        return
    else:
        graph.node.append(helper.make_node("Range", ["zero", "many", "step"], ["bomb"]))
        graph.initializer.extend(numpy_helper.from_array(np.array(n), name) for n, name in ((0, "zero"), (1, "step")))
    if random.random() < 0.5:
        graph.output.append(helper.make_tensor_value_info("bomb", onnx.TensorProto.FLOAT, None))


def _booleans(name: str) -> list[Any]:
    return [helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, [])]


def _external(model: Any, random: Random) -> None:
    """A tensor that keeps its values elsewhere, in one of the places a tensor may be."""
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "elsewhere")
    onnx.external_data_helper.set_external_data(
        tensor, random.choice(("model.onnx", "../x", "/etc/passwd", "", "/dev/zero"))
    )
    if random.random() < 0.5:
        tensor.ClearField("raw_data")
    sparse = onnx.SparseTensorProto(dims=[2], values=tensor)
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    graph = helper.make_graph([constant], "inner", [], [], [tensor])
    branches = helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)
    for _ in range(random.choice((0, 1, 5, 30))):
        graph = helper.make_graph([branches], "outer", [], [])
        branches = helper.make_node("If", ["x"], ["y"], then_branch=graph)
    opset = [helper.make_opsetid("", 17)]
    random.choice((
        lambda: model.graph.initializer.append(tensor),
        lambda: model.graph.initializer[0].CopyFrom(tensor),
        lambda: model.graph.sparse_initializer.append(sparse),
        lambda: model.graph.node.append(constant),
        lambda: model.graph.node.append(branches),
        lambda: model.functions.append(helper.make_function("own", "F", [], ["c"], [constant], opset)),
        lambda: model.training_info.add().algorithm.CopyFrom(graph),
    ))()  # fmt: skip


def _external_in_disguise(model: bytes, random: Random) -> bytes:
    """External data whose keys a 32-bit reader understands and a careful one may not."""
    high = random.choice((2**32, 2**33, 2**34))
    entry = message(1, b"location") + message(2, b"model.onnx")
    location = varint((13 << 3 | BYTES) + high) + varint(len(entry)) + entry
    flag = varint((14 << 3) + random.choice((0, high))) + varint(
        random.choice((1, 2**32 + 1, 2)), random.choice((1, 10))
    )
    tensor = varint(1 << 3) + varint(2) + varint(2 << 3) + varint(1) + message(8, b"weight") + location + flag
    key = varint((5 << 3 | BYTES) + random.choice((0, high)))
    graph = key + varint(len(tensor)) + tensor
    return model + message(7, graph)


def _wire(model: bytes, random: Random) -> bytes:
    for _ in range(random.choice((1, 1, 2, 4))):
        model = change_a_field(model, random)
    return model


def _deep(model: bytes, random: Random) -> bytes:
    """Messages within messages: graphs, or types, which hold no tensor."""
    content = b""
    depth = random.choice((10, 60, 100, 1000, 5000))
    numbers = random.choice(((6, 5, 1), (1, 4)))
    for at in range(depth):
        content = message(numbers[at % len(numbers)], content)
    return model + message(7, content if len(numbers) == 3 else message(13, message(1, b"v") + message(2, content)))


def _other_format(model: bytes, random: Random) -> bytes:
    """The first bytes of what engines know besides ONNX."""
    first = random.choice(
        (b"<?xml version='1.0'?><net></net>", b"\x20\0\0\0ORTM", b"\x1c\0\0\0TFL3", b"PK\3\4", b"\x80\x02.")
    )
    return random.choice((first, first + model, Field(60, BYTES, b"\0\0ORTM").encode() + model))


_MODEL_CHANGES: dict[str, Callable[[bytes, Random], bytes]] = {
    "bits": flip_bits,
    "cut": cut,
    "splice": splice,
    "wire": _wire,
    "dims": _changed(_dims),
    "tensor values": _changed(_tensor_values),
    "tensor type": _changed(_tensor_type),
    "tensor name": _changed(_tensor_name),
    "operator": _changed(_operator),
    "attribute": _changed(_attribute),
    "edges": _changed(_edges),
    "ends": _changed(_ends),
    "versions": _changed(_versions),
    "more nodes": _changed(_more_nodes),
    "external": _changed(_external),
    "external in disguise": _external_in_disguise,
    "deep": _deep,
    "other format": _other_format,
    "many fields": lambda model, random: model + b"\x08\x08" * random.choice((1000, 10**6)),
}


def _in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else under the name of a file of the bundle."""

    def replace(bundle: Path) -> None:
        (bundle / name).rename(bundle.parent / "kept")
        make(bundle / name)

    return replace


_PLACES: dict[str, Callable[[Path], object]] = {"files": lambda bundle: None} | {
    f"{name} is {what}": _in_place_of(name, make)
    for name in ("bundle.json", "model.onnx")
    for what, make in {
        "a link": lambda path: path.symlink_to("../kept"),
        "a link to itself": lambda path: path.symlink_to(path),
        "a device": lambda path: path.symlink_to("/dev/zero"),
        "a folder": lambda path: path.mkdir(),
        "a FIFO": lambda path: os.mkfifo(path),
        "missing": lambda path: None,
        "empty": lambda path: path.touch(),
    }.items()
}
