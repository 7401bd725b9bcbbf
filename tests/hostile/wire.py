"""Changes within a protobuf file that keep the lengths of everything around them right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)

# Where messages are in onnx.proto: message -> field number -> message.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 8: "Opset"},
    "Opset": {},
    "Graph": {1: "Node", 5: "Tensor", 11: "ValueInfo", 12: "ValueInfo", 13: "ValueInfo"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph"},
    "Tensor": {},
    "ValueInfo": {2: "Type"},
    "Type": {1: "TensorType"},
    "TensorType": {2: "Shape"},
    "Shape": {1: "Dimension"},
    "Dimension": {},
}
_NUMBERS = (
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    127,
    2**16,
    2**20,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**32 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


@dataclass(frozen=True)
class Field:
    """A field of a message: its number, its wire type, and its number or its bytes."""

    number: int
    wire_type: int
    value: int | bytes

    def encode(self) -> bytes:
        """The field as it stands in a file."""
        key = varint(self.number << 3 | self.wire_type)
        if isinstance(self.value, int):
            return key + varint(self.value)
        return key + (varint(len(self.value)) if self.wire_type == BYTES else b"") + self.value


def varint(value: int, length: int = 1) -> bytes:
    """A base-128 number, in at least `length` bytes."""
    encoded = bytearray()
    while value > 0x7F or len(encoded) + 1 < length:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes([value])


def message(number: int, content: bytes) -> bytes:
    """A message as a field of another one."""
    return Field(number, BYTES, content).encode()


def parse(content: bytes) -> list[Field]:
    """The fields of a sound message."""
    fields, position = [], 0
    while position < len(content):
        key, position = _read_varint(content, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, position = _read_varint(content, position)
            fields.append(Field(number, wire_type, value))
            continue
        length = {FIXED32: 4, FIXED64: 8}.get(wire_type)
        if length is None:
            length, position = _read_varint(content, position)
        fields.append(Field(number, wire_type, content[position : position + length]))
        position += length
    return fields


def encode(fields: list[Field]) -> bytes:
    """The inverse of `parse`."""
    return b"".join(field.encode() for field in fields)


def change_a_field(content: bytes, random: Random, kind: str = "Model") -> bytes:
    """Change one field somewhere in an ONNX model."""
    fields = parse(content)
    if not fields:
        return random.choice((b"\x08\x01", b"", random.randbytes(3)))
    inner = [at for at, field in enumerate(fields) if field.number in _MESSAGES[kind] and field.wire_type == BYTES]
    if inner and random.random() < 0.85:
        at = random.choice(inner)
        field = fields[at]
        fields[at] = replace(field, value=change_a_field(bytes(field.value), random, _MESSAGES[kind][field.number]))
        return encode(fields)
    at = random.randrange(len(fields))
    change = random.choice(_CHANGES)
    return encode(fields[:at]) + change(fields[at], random) + encode(fields[at + 1 :])


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _another_value(field: Field, random: Random) -> bytes:
    if isinstance(field.value, int):
        return replace(field, value=random.choice(_NUMBERS)).encode()
    raw = bytearray(field.value)
    if raw and random.random() < 0.5:
        raw[random.randrange(len(raw))] = random.randrange(256)
    elif raw:
        del raw[random.randrange(len(raw)) :]
    else:
        raw += random.randbytes(4)
    if field.wire_type in (FIXED32, FIXED64):
        raw = bytearray(random.randbytes(len(field.value)))
    return replace(field, value=bytes(raw)).encode()


def _another_number(field: Field, random: Random) -> bytes:
    return replace(field, number=random.choice((0, 1, 2, 5, 7, 8, 9, 13, 14, 15, 20, 25, 2**29 - 1, 2**29))).encode()


def _another_wire_type(field: Field, random: Random) -> bytes:
    encoded = field.encode()
    return bytes([encoded[0] & 0xF8 | random.randrange(8)]) + encoded[1:]


def _long_key(field: Field, random: Random) -> bytes:
    """The key in more bytes than it needs, with bits that a 32-bit reader drops."""
    key = field.number << 3 | field.wire_type
    high = random.choice((0, 2**32, 2**34, 2**60))
    return varint(key + high, random.choice((1, 2, 5, 10))) + field.encode()[len(varint(key)) :]


def _long_varint(field: Field, random: Random) -> bytes:
    key = varint(field.number << 3 | field.wire_type)
    if isinstance(field.value, int):
        return key + varint(field.value, random.choice((2, 5, 10, 11)))
    return key + varint(len(field.value), random.choice((2, 5, 10, 11))) + field.value


def _another_length(field: Field, random: Random) -> bytes:
    if isinstance(field.value, int):
        return field.encode()
    key = varint(field.number << 3 | BYTES)
    return key + varint(random.choice((*_NUMBERS, len(field.value) + 1, max(0, len(field.value) - 1)))) + field.value


_CHANGES: tuple[Callable[[Field, Random], bytes], ...] = (
    _another_value,
    _another_value,
    _another_value,
    _another_number,
    _another_wire_type,
    _long_key,
    _long_varint,
    _another_length,
    lambda field, random: b"",
    lambda field, random: field.encode() * random.choice((2, 2, 3, 1000)),
)
