"""Hostile DICOM protocol data units by the seed: a sound association request, mutated, or noise; then more of it."""

from __future__ import annotations

import socket
import struct
from random import Random

from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian

_CONNECT_S, _ANSWER_S = 5.0, 0.02
_KINDS = (1, 2, 3, 4, 5, 6, 7, 8, 0, 255)


def associate_request(called: str = "COVIDSEG", calling: str = "SCANNER") -> bytes:
    """An A-ASSOCIATE-RQ for CT images, as PS3.8 9.3.2 says."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(content)) + content

    abstract, transfer = item(0x30, CTImageStorage.encode()), item(0x40, ImplicitVRLittleEndian.encode())
    user = item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
    items = item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, b"\1\0\0\0" + abstract + transfer) + user
    titles = called.ljust(16).encode() + calling.ljust(16).encode()
    body = struct.pack(">HH", 1, 0) + titles + bytes(32) + items
    return struct.pack(">BBI", 1, 0, len(body)) + body


def hostile_stream(random: Random) -> bytes:
    """What one caller sends."""
    if random.random() < 0.2:
        return random.randbytes(random.choice((1, 6, 10, 100, 5000)))
    request = bytearray(associate_request())
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        place = random.randrange(len(request))
        kind = random.randrange(4)
        if kind == 0:
            request[place] = random.randrange(256)
        elif kind == 1:
            del request[place : place + random.choice((1, 4, 50))]
        elif kind == 2:
            request[place:place] = random.randbytes(random.choice((1, 4, 300)))
        else:
            request[place : place + 4] = struct.pack(">I", random.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)))
        if not request:
            request = bytearray(b"\1")
    return bytes(request) + b"".join(_unit(random) for _ in range(random.choice((0, 0, 1, 3))))


def _unit(random: Random) -> bytes:
    """A PDU of any kind whose length may be a lie."""
    content = random.randbytes(random.choice((0, 4, 60, 2000)))
    length = random.choice((len(content), len(content), 0, 0xFFFFFFFF, len(content) + 10))
    return struct.pack(">BBI", random.choice(_KINDS), 0, length) + content


def attack(port: int, seed: int) -> None:
    """Send one stream, look at the answer for a moment, and leave, politely or not."""
    random = Random(seed)
    with socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_S) as connection:
        connection.settimeout(_ANSWER_S)
        try:
            connection.sendall(hostile_stream(random))
            if random.random() < 0.5:
                connection.recv(65536)
        except OSError:  # closed on us, or silent: both are fine
            return
