"""Hostile NIfTI files by the seed: a sound small file, then one to three changes of its header, its bytes or its gzip.

Everything is drawn from the `random.Random` that is handed in, so that a seed names a file for good and Hypothesis can
hand in its own.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import nibabel.nifti1
import nibabel.nifti2
import numpy as np
from numpy.typing import NDArray

SHAPE = (7, 6, 5)
BOMB_BYTES = 10**9

_AFFINE = np.array([[-1.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2.0, -30]])
_INTEGERS = (0, 1, -1, 2, 7, 127, 255, 256, 4096, 4097, 32767, -32768, 2**31 - 1, -(2**31), 2**62, -(2**63))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 1e-8, 1e8, 3e38, -3e38, 1e300, np.inf, -np.inf, np.nan)
_CODES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 3, 999, -1)
_BITS = (0, 1, 8, 16, 24, 32, 64, 128, 256, -16)


@dataclass
class Draft:
    """A NIfTI file in parts.

    Attributes:
        header: One record of nibabel's header type, in either byte order.
        extension: What stands between header and voxels.
        voxels: Bytes of the voxels.
    """

    header: NDArray[np.void]
    extension: bytes
    voxels: bytes

    def content(self) -> bytes:
        """The file, before gzip."""
        return self.header.tobytes() + self.extension + self.voxels

    def put(self, field: str, values: object) -> None:
        """Set a field of the header, clipped to what its type holds."""
        kind = self.header.dtype[field].base
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            values = [min(max(int(value), limits.min), limits.max) for value in np.ravel(np.array(values, object))]
        with np.errstate(all="ignore"):
            self.header[field] = np.reshape(values, self.header.dtype[field].shape)


@dataclass(frozen=True)
class HostileScan:
    """A file to be written.

    Attributes:
        changes: What was done to it, in order.
        name: Its name.
        content: Its bytes.
        place: How it lies in its folder: a key of `_PLACES`.
    """

    changes: tuple[str, ...]
    name: str
    content: bytes
    place: str = "file"

    @property
    def is_bomb(self) -> bool:
        """Whether its gzip stream holds a thousand times its length."""
        return any(change.startswith("bomb") for change in self.changes)

    def write(self, folder: Path) -> Path:
        """Put it into an empty folder; the path to be read comes back."""
        path = folder / self.name
        _PLACES[self.place](path, self.content)
        return path


def hostile_scan(random: Random) -> HostileScan:
    """Draw one file."""
    draft = _sound(random)
    changes = []
    for name in random.sample(sorted(_HEADER_CHANGES), random.choice((0, 1, 1, 2, 3))):
        _HEADER_CHANGES[name](draft, random)
        changes.append(name)
    content = draft.content()
    if random.random() < 0.3:
        name = random.choice(sorted(_BYTE_CHANGES))
        content = _BYTE_CHANGES[name](content, random)
        changes.append(name)
    ending = ".nii"
    if random.random() < 0.5:
        ending = ".nii.gz"
        name = random.choice(sorted(_GZIP_CHANGES)) if random.random() < 0.5 else "gzip"
        content = _GZIP_CHANGES[name](content, random)
        changes.append(name)
    place = random.choice(sorted(_PLACES)) if random.random() < 0.04 else "file"
    if place != "file":
        changes.append(place)
    if random.random() < 0.03:
        ending = random.choice((".nii", ".nii.gz", ".gz", ".NII", ".nii.gz.nii", ".dcm"))
        changes.append(f"named {ending}")
    return HostileScan(tuple(changes), f"scan{ending}", content, place)


@lru_cache
def _sound_parts(version: int, order: str, code: int) -> tuple[NDArray[np.void], bytes]:
    """Header and voxels of a sound CT."""
    header = (nibabel.nifti1.Nifti1Header, nibabel.nifti2.Nifti2Header)[version - 1](endianness=order)
    header.set_data_dtype(code)
    header.set_data_shape(SHAPE)
    header.set_sform(np.vstack([_AFFINE, [0, 0, 0, 1]]), code="scanner")
    header.set_qform(np.vstack([_AFFINE, [0, 0, 0, 1]]), code="scanner")
    header.set_xyzt_units("mm")
    header["magic"] = (b"n+1", b"n+2\x00\r\n\x1a\n")[version - 1]
    header["vox_offset"] = len(header.binaryblock) + 4
    header["scl_slope"], header["scl_inter"] = 1, 0
    kind = header.get_data_dtype()
    voxels = np.random.default_rng(code).integers(-1000, 400, SHAPE)
    if kind.kind == "u" or kind.itemsize == 1:
        voxels = np.clip(voxels, 0, 3)  # a label map
    return header.structarr, voxels.astype(kind).tobytes()


def _sound(random: Random) -> Draft:
    header, voxels = _sound_parts(random.choice((1, 1, 2)), random.choice("<>"), random.choice((2, 4, 4, 8, 16, 64)))
    return Draft(header.copy(), bytes(4), voxels)


def _number(random: Random) -> float:
    if random.random() < 0.6:
        return random.choice(_FLOATS)
    return float(struct.unpack("<d", random.randbytes(8))[0]) if random.random() < 0.5 else random.uniform(-30, 30)


def _dims(draft: Draft, random: Random) -> None:
    dims = [int(n) for n in draft.header["dim"]]
    for _ in range(random.randint(1, 3)):
        dims[random.randrange(8)] = random.choice(_INTEGERS)
    draft.put("dim", np.array(dims, object))


def _large_dims(draft: Draft, random: Random) -> None:
    """Dimensions a real CT may have, without the voxels."""
    draft.put("dim", [3, *(random.choice((64, 512, 1000, 2000, 4096)) for _ in range(3)), 1, 1, 1, 1])


def _type(draft: Draft, random: Random) -> None:
    draft.put("datatype", random.choice(_CODES))
    if random.random() < 0.6:
        draft.put("bitpix", random.choice(_BITS))


def _unreadable_type(draft: Draft, random: Random) -> None:
    """Colours, complex and long numbers, with their right width."""
    code, bits = random.choice(((128, 24), (2304, 32), (32, 64), (1792, 128), (1024, 64), (1280, 64), (1536, 128)))
    draft.put("datatype", code)
    draft.put("bitpix", bits)


def _voxel_offset(draft: Draft, random: Random) -> None:
    offsets = (0, 1, 347, 348, 350, 352, 352.5, 540, 544, 1000, 1e7, 2**24 - 1, 2**24, 2**40, -352)
    draft.put("vox_offset", random.choice((*offsets, random.randrange(1000))))
    if draft.header.dtype["vox_offset"].kind == "f" and random.random() < 0.3:
        draft.put("vox_offset", _number(random))


def _scaling(draft: Draft, random: Random) -> None:
    draft.put(random.choice(("scl_slope", "scl_inter")), _number(random))
    if random.random() < 0.3:
        draft.put("scl_inter", random.choice((-1024, 0.5, 32767, -32769, 1e30)))


def _spacing(draft: Draft, random: Random) -> None:
    spacing = draft.header["pixdim"].astype(np.float64)
    spacing[random.randrange(5)] = _number(random)
    draft.put("pixdim", spacing)


def _sform(draft: Draft, random: Random) -> None:
    rows = np.array(_AFFINE)
    rows[random.randrange(3), random.randrange(4)] = _number(random)
    for row, values in zip("xyz", rows, strict=True):
        draft.put(f"srow_{row}", values)


def _singular_or_sheared(draft: Draft, random: Random) -> None:
    rows = np.array(_AFFINE)
    rows[:, 1] = rows[:, 0] * random.choice((1, -1, 2, 1e-3)) + rows[:, 1] * random.choice(
        (0, 1e-6, 1e-3, 1e-2, 0.5, 1)
    )
    for row, values in zip("xyz", rows, strict=True):
        draft.put(f"srow_{row}", values)


def _qform(draft: Draft, random: Random) -> None:
    draft.put("sform_code", 0)
    for field in random.sample(("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_z"), 2):
        draft.put(field, _number(random))
    if random.random() < 0.3:
        draft.put("pixdim", [_number(random), 1.5, 1.5, 2, 0, 0, 0, 0])


def _form_codes(draft: Draft, random: Random) -> None:
    draft.put("sform_code", random.choice((0, 0, 1, -1, 32767)))
    draft.put("qform_code", random.choice((0, 1, -1, 32767)))


def _magic(draft: Draft, random: Random) -> None:
    draft.put(
        "magic", random.choice((b"", b"ni1", b"n+3", b"n+1", b"n+2", b"n+1 ", b"ni2\x00\r\n\x1a\n", b"\xff\xff\xff"))
    )


def _header_size(draft: Draft, random: Random) -> None:
    draft.put("sizeof_hdr", random.choice((0, 347, 348, 540, 1543569408, 469893120, -1)))


def _any_field(draft: Draft, random: Random) -> None:
    """Random bits in a random field: numbers that signal, denormals, everything."""
    field = random.choice(sorted(draft.header.dtype.names))
    raw = bytearray(draft.header.tobytes())
    kind, offset = draft.header.dtype.fields[field][:2]
    raw[offset : offset + kind.itemsize] = random.randbytes(kind.itemsize)
    draft.header = np.frombuffer(raw, draft.header.dtype)[0].copy()


def _voxel_values(draft: Draft, random: Random) -> None:
    draft.voxels = random.randbytes(len(draft.voxels))


def _extension(draft: Draft, random: Random) -> None:
    """An extension whose size is anything."""
    size = random.choice((0, 8, 15, 16, 32, 2**31 - 1, -16))
    code = random.choice((0, 2, 4, 6, -1))
    draft.extension = struct.pack("<4B2i", 1, 0, 0, 0, size, code) + random.randbytes(random.choice((0, 8, 24)))
    if random.random() < 0.7:
        draft.put("vox_offset", draft.header.dtype.itemsize + len(draft.extension))


_HEADER_CHANGES: dict[str, Callable[[Draft, Random], None]] = {
    "dims": _dims,
    "large dims": _large_dims,
    "type": _type,
    "unreadable type": _unreadable_type,
    "voxel offset": _voxel_offset,
    "scaling": _scaling,
    "spacing": _spacing,
    "sform": _sform,
    "singular or sheared": _singular_or_sheared,
    "qform": _qform,
    "form codes": _form_codes,
    "magic": _magic,
    "header size": _header_size,
    "any field": _any_field,
    "voxel values": _voxel_values,
    "extension": _extension,
}


def flip_bits(content: bytes, random: Random) -> bytes:
    """One to eight bits the other way."""
    raw = bytearray(content)
    for _ in range(random.randint(1, 8) if raw else 0):
        raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
    return bytes(raw)


def cut(content: bytes, random: Random) -> bytes:
    """The first so many bytes."""
    return content[: random.randrange(len(content) + 1)]


def splice(content: bytes, random: Random) -> bytes:
    """A piece of the file, or noise, in another place of it."""
    start, at = random.randrange(len(content) + 1), random.randrange(len(content) + 1)
    length = random.choice((1, 2, 4, 8, 64))
    piece = content[start : start + length] if random.random() < 0.7 else random.randbytes(length)
    return content[:at] + piece + content[at + random.choice((0, len(piece))) :]


_BYTE_CHANGES: dict[str, Callable[[bytes, Random], bytes]] = {
    "bits": flip_bits,
    "cut": cut,
    "splice": splice,
    "tail": lambda content, random: content + random.randbytes(random.choice((1, 100, 5000))),
    "text": lambda content, random: b"this is no scan\n" * random.choice((1, 30, 1000)),
    "empty": lambda content, random: b"",
    "noise": lambda content, random: random.randbytes(random.choice((1, 348, 540, 2000))),
    "header alone": lambda content, random: content[:348],
}


def _members(content: bytes, random: Random) -> bytes:
    """Hundreds of gzip members, some of them empty."""
    size = max(1, len(content) // random.choice((2, 50, 400)))
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    empty = gzip.compress(b"", mtime=0)
    return b"".join(gzip.compress(part, 1, mtime=0) + empty * random.choice((0, 1, 3)) for part in parts)


def _wrong_trailer(content: bytes, random: Random) -> bytes:
    """Another checksum, or another size."""
    raw = bytearray(gzip.compress(content, 1, mtime=0))
    raw[-random.randint(1, 8)] ^= 1 << random.randrange(8)
    return bytes(raw)


def _odd_gzip_header(content: bytes, random: Random) -> bytes:
    """Flags that promise extra fields, names and comments which are not there or do not end."""
    raw = bytearray(gzip.compress(content, 1, mtime=0))
    raw[random.choice((2, 3, 3, 3))] = random.randrange(256)
    return bytes(raw[:10]) + random.choice((b"", b"\xff\xff", b"A" * 70_000)) + bytes(raw[10:])


@lru_cache
def zeros_as_gzip(count: int) -> bytes:
    """`count` zeros as one gzip member of about a thousandth of that."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeeze.compress(bytes(10**6)) + squeeze.flush(zlib.Z_FULL_FLUSH)  # from here on blocks may be repeated
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    checksum, million = 0, bytes(10**6)
    for _ in range(count // 10**6):
        checksum = zlib.crc32(million, checksum)
    trailer = struct.pack("<II", checksum, count % 2**32)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + block * (count // 10**6) + end + trailer


def _bomb_after_the_voxels(content: bytes, random: Random) -> bytes:
    return gzip.compress(content, 1, mtime=0) + zeros_as_gzip(BOMB_BYTES)


def _bomb_of_zeros(content: bytes, random: Random) -> bytes:
    return zeros_as_gzip(BOMB_BYTES)


def _bomb_as_promised(content: bytes, random: Random) -> bytes:
    """A legal header, and a stream that really holds its 10^9 bytes."""
    version = random.choice((1, 2))
    header, _ = _sound_parts(version, random.choice("<>"), 4)
    draft = Draft(header.copy(), bytes(4), b"")
    draft.put("dim", [3, 1000, 1000, 499, 1, 1, 1, 1])
    return gzip.compress(draft.content(), 1, mtime=0) + zeros_as_gzip(BOMB_BYTES)


_GZIP_CHANGES: dict[str, Callable[[bytes, Random], bytes]] = {
    "gzip": lambda content, random: gzip.compress(content, 1, mtime=0),
    "gzip bits": lambda content, random: flip_bits(gzip.compress(content, 1, mtime=0), random),
    "gzip cut": lambda content, random: cut(gzip.compress(content, 1, mtime=0), random),
    "gzip splice": lambda content, random: splice(gzip.compress(content, 1, mtime=0), random),
    "gzip tail": lambda content, random: gzip.compress(content, 1, mtime=0) + random.randbytes(random.choice((1, 20))),
    "gzip members": _members,
    "gzip trailer": _wrong_trailer,
    "gzip header": _odd_gzip_header,
    "gzip stored": lambda content, random: flip_bits(gzip.compress(content, 0, mtime=0), random),
    "gzip twice": lambda content, random: gzip.compress(gzip.compress(content, mtime=0), mtime=0),
    "no gzip": lambda content, random: content,
    "bomb after the voxels": _bomb_after_the_voxels,
    "bomb of zeros": _bomb_of_zeros,
    "bomb as promised": _bomb_as_promised,
}


def _link_to_file(path: Path, content: bytes) -> None:
    target = path.with_name("target")
    target.write_bytes(content)
    path.symlink_to(target)


_PLACES: dict[str, Callable[[Path, bytes], object]] = {
    "file": lambda path, content: path.write_bytes(content),
    "folder": lambda path, content: path.mkdir(),
    "FIFO": lambda path, content: os.mkfifo(path),
    "link": _link_to_file,
    "link to itself": lambda path, content: path.symlink_to(path),
    "link to nothing": lambda path, content: path.symlink_to("nothing"),
    "link to a device": lambda path, content: path.symlink_to("/dev/zero"),
    "missing": lambda path, content: None,
}
