"""A multipart upload of one scan and its options: parsed as it comes, the scan straight onto the disk."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from covidseg_runtime.errors import OutputError, SettingsError
from covidseg_runtime.service.jobs import JobOptions
from covidseg_runtime.service.problems import Problem
from covidseg_runtime.service.scan_content import is_dicom, scan_name

SCAN = "scan"
_FIELDS = ("quality", "min_lesion_ml", "window", "page")
_LONGEST_FIELD = 64
_MOST_PARTS = 8
_PARTIAL = "upload.part"
_TOGETHER = 1 << 20  # written at once
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d{1,3})?")


@dataclass(frozen=True)
class Upload:
    """An upload that came whole.

    Attributes:
        scan: Name of its file.
        options: What is asked for.
        fingerprint: sha256 of both.
    """

    scan: str
    options: JobOptions
    fingerprint: str


async def receive_upload(content_type: str | None, body: AsyncIterator[bytes], folder: Path) -> Upload:
    """Take an upload in.

    Args:
        content_type: Of the request.
        body: Its chunks, already limited.
        folder: Where the scan goes; empty.

    Raises:
        Problem: If it is no such upload.
        OutputError: If it cannot be written.
    """
    parser = _UploadParser(_boundary(content_type), folder)
    try:
        waiting = bytearray()
        async for chunk in body:
            waiting += chunk
            if len(waiting) >= _TOGETHER:
                await run_in_threadpool(parser.write, bytes(waiting))
                waiting.clear()
        return await run_in_threadpool(parser.finish, bytes(waiting))
    finally:
        parser.close()


def _boundary(content_type: str | None) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data":
        raise Problem(
            415,
            f"A body of type multipart/form-data is expected, with the scan in its part {SCAN!r}: curl -F scan=@FILE.",
        )
    if not 0 < len(boundary) <= 70:
        raise Problem(400, "The Content-Type names no boundary of 1 to 70 characters; let an HTTP library write it.")
    return boundary


class _UploadParser:
    """Takes the parts as the library finds them; whatever raises in between ends the upload."""

    def __init__(self, boundary: bytes, folder: Path) -> None:
        self._folder, self._digest = folder, hashlib.sha256()
        self._fields: dict[str, bytearray] = {}
        self._name, self._parts, self._is_whole = "", 0, False
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._file: BinaryIO | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._collect("_header"),
                "on_header_value": self._collect("_value"),
                "on_header_end": self._end_header,
                "on_headers_finished": self._open_part,
                "on_part_data": self._take,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        """Parse what came.

        Raises:
            Problem, OutputError: As of `receive_upload`.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Problem(400, f"The multipart body is damaged ({error}); let an HTTP library write it.") from error
        except OSError as error:
            raise OutputError(f"The upload cannot be written: {error.strerror}.") from error

    def finish(self, rest: bytes) -> Upload:
        """Parse the last that came; the upload comes back.

        Raises:
            Problem, OutputError: As of `receive_upload`.
        """
        self.write(rest)
        if not self._is_whole:
            raise Problem(400, "The multipart body ends before its last boundary; send it whole.")
        if self._file is None:
            raise Problem(422, f"There is no part {SCAN!r}; send the scan in it: curl -F scan=@FILE.")
        options = _options({name: bytes(value) for name, value in self._fields.items()})
        scan = self._keep_scan(self._file)
        if is_dicom(Path(scan)) and find_spec("pydicom") is None:
            raise Problem(415, "This service cannot read DICOM: it lacks the extra `dicom`; send NIfTI.")
        if is_dicom(Path(scan)) and options.window_hu is not None:
            raise Problem(422, "window is for files of grey levels; a DICOM series holds its own rescaling to HU.")
        self._digest.update(repr(options).encode())
        return Upload(scan, options, self._digest.hexdigest())

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._file is not None:
            self._file.close()

    def _keep_scan(self, file: BinaryIO) -> str:
        """Make the scan outlive a loss of power, under the name that its content has."""
        path = self._folder / _PARTIAL
        try:
            file.flush()
            os.fsync(file.fileno())
            name = scan_name(path)
            if name is None:
                raise Problem(
                    415,
                    "The scan is nothing that is read: NIfTI (.nii, .nii.gz), a zip of a DICOM series, or DICOM.",
                )
            path.rename(self._folder / name)
        except OSError as error:
            raise OutputError(f"The upload cannot be written: {error.strerror}.") from error
        return name

    def _collect(self, name: str) -> Callable[[bytes, int, int], None]:
        def collect(data: bytes, start: int, end: int) -> None:
            getattr(self, name).extend(data[start:end])

        return collect

    def _begin_part(self) -> None:
        self._disposition = b""
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise Problem(422, f"The body has more than {_MOST_PARTS} parts; send {_expected()}, each once.")

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _open_part(self) -> None:
        # What the part says the file is called is not even looked at.
        name = parse_options_header(self._disposition)[1].get(b"name", b"").decode("utf-8", "replace")
        if name != SCAN and name not in _FIELDS:
            raise Problem(422, f"The part {name[:_LONGEST_FIELD]!r} is unknown; send {_expected()}.")
        if name in self._fields or (name == SCAN and self._file is not None):
            raise Problem(422, f"The part {name!r} is there twice; send one scan a job.")
        self._name = name
        if name == SCAN:
            self._file = (self._folder / _PARTIAL).open("xb")
        else:
            self._fields[name] = bytearray()

    def _take(self, data: bytes, start: int, end: int) -> None:
        part = data[start:end]
        if self._name == SCAN and self._file is not None:
            self._digest.update(part)
            self._file.write(part)
            return
        field = self._fields[self._name]
        field += part
        if len(field) > _LONGEST_FIELD:
            raise Problem(422, f"{self._name} is longer than {_LONGEST_FIELD} characters.")

    def _end(self) -> None:
        self._is_whole = True


def _expected() -> str:
    return f"{SCAN} and, if wanted, {', '.join(_FIELDS)}"


def _options(fields: dict[str, bytes]) -> JobOptions:
    given = {name: value.decode("utf-8", "replace") for name, value in fields.items()}
    try:
        return JobOptions(
            quality=given.get("quality", JobOptions.quality),
            min_lesion_ml=_number("min_lesion_ml", given.get("min_lesion_ml", str(JobOptions.min_lesion_ml))),
            window_hu=_window(given["window"]) if "window" in given else None,
            page=_truth("page", given.get("page", "true")),
        )
    except SettingsError as error:
        raise Problem(422, f"{error}.".replace("..", ".")) from error


def _number(name: str, text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise Problem(422, f"{name} is {text!r}; a number such as 0.05 is expected.")
    return float(text)


def _truth(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise Problem(422, f"{name} is {text!r}; true or false is expected.")
    return text == "true"


def _window(text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        raise Problem(422, f"window is {text!r}; two numbers LOW,HIGH in HU are expected, as in -1250,250.")
    low, high = (_number("window", part) for part in parts)
    return low, high
