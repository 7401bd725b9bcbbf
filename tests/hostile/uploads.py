"""Hostile uploads by the seed: scans and series as forms, archives that lie, forms of which bytes changed."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from hostile.scans import cut, flip_bits, hostile_scan, splice
from hostile.series import hostile_series, sound_series
from pydicom.uid import ExplicitVRLittleEndian

BOUNDARY = b"x-boundary-x"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY.decode()}"
_NAMES = (
    "scan.nii.gz",
    "../../../etc/passwd",
    "/etc/passwd",
    "C:\\scan.nii",
    "a" * 2000,
    "\x00",
    "\r\nX: y",
    '"; name="quality"',
    "DOE^JOHN.dcm",
)
_FIELDS = {
    "quality": ("fast", "best", "", "x" * 100, "\xff"),
    "min_lesion_ml": ("0", "1e308", "-1", "nan", "1e999", "0x1"),
    "window": ("-1250,250", "0,0", ",", "1" * 60, "-1e308,1e308"),
    "page": ("false", "true", "2"),
    "unknown": ("1",),
}


@dataclass(frozen=True)
class HostileUpload:
    """The body of a request, and what it is made of."""

    changes: tuple[str, ...]
    body: bytes


def hostile_upload(random: Random) -> HostileUpload:
    """Draw one."""
    changes, content = random.choice((_scan, _scan, _scan, _series, _archive))(random)
    fields = {name: random.choice(values) for name, values in _FIELDS.items() if random.random() < 0.1}
    fields.setdefault("page", "false")
    body = form(content, random.choice(_NAMES) if random.random() < 0.3 else "scan", fields)
    if random.random() < 0.2:
        change = random.choice((flip_bits, cut, splice))
        body, changes = change(body, random), (*changes, f"form: {change.__name__}")
    return HostileUpload(changes, body)


def form(content: bytes, name: str, fields: dict[str, str]) -> bytes:
    """A form as a careless program writes it."""
    parts = [f'name="{field}"\r\n\r\n'.encode() + value.encode("latin-1") for field, value in fields.items()]
    parts.append(f'name="scan"; filename="{name}"\r\n\r\n'.encode("latin-1") + content)
    joined = b"".join(b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
    return joined + b"--" + BOUNDARY + b"--\r\n"


def _scan(random: Random) -> tuple[tuple[str, ...], bytes]:
    scan = hostile_scan(random)
    return scan.changes, scan.content


def _series(random: Random) -> tuple[tuple[str, ...], bytes]:
    series = hostile_series(random)
    names = [random.choice((f"IM{k}", f"../{k}", f"/etc/{k}", f"a/b/../../{k}")) for k in range(len(series.files))]
    return ("series", *series.changes), _zipped(dict(zip(names, series.files, strict=True)), zipfile.ZIP_DEFLATED)


def _archive(random: Random) -> tuple[tuple[str, ...], bytes]:
    """A zip archive that is hostile as such."""
    sound = {f"IM{k}": content for k, content in enumerate(sound_series(ExplicitVRLittleEndian))}
    kind = random.choice(("bomb", "many", "nested", "bytes", "sizes", "odd compression"))
    if kind == "bomb":
        return ("zip: bomb",), _bomb()
    if kind == "many":
        return ("zip: many",), _zipped({str(k): b"" for k in range(3000)}, zipfile.ZIP_STORED)
    if kind == "nested":
        return ("zip: nested",), _zipped({"inner.zip": _zipped(sound, zipfile.ZIP_STORED)}, zipfile.ZIP_STORED)
    if kind == "odd compression":
        return ("zip: bzip2",), _zipped(sound, zipfile.ZIP_BZIP2)
    packed = bytearray(_zipped(sound, zipfile.ZIP_DEFLATED))
    if kind == "sizes":  # of the central directory, which readers believe
        start = packed.rfind(b"PK\x01\x02")
        packed[start + 20 : start + 28] = random.choice((bytes(8), b"\xff" * 8, b"\xff\xff\xff\x7f" * 2))
        return ("zip: sizes",), bytes(packed)
    return ("zip: bytes",), flip_bits(bytes(packed), random)


@lru_cache
def _bomb() -> bytes:
    return _zipped({"bomb": bytes(128) + b"DICM" + bytes(200_000_000)}, zipfile.ZIP_DEFLATED)


def _zipped(files: dict[str, bytes], compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()
