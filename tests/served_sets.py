"""Small data sets, and a web server on this machine that can be told to misbehave."""

from __future__ import annotations

import io
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, spl_affine


def write_case(folder: Path, name: str, marked: slice = slice(None)) -> None:
    """A drawn chest as ``covid-19-ct-seg-rebuilt`` keeps it, the mask of the slices ``marked`` only."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = spl_affine(PHANTOM_SPACING_MM)
    infection = (phantom_labels() == 3).astype(np.uint8)[marked]
    nibabel.save(nibabel.Nifti1Image(phantom_hu(), affine), folder / f"{name}_ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(infection, affine), folder / f"{name}_infection.nii.gz")


def zip_bytes(files: dict[str, bytes]) -> bytes:
    """A zip of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zipped(folder: Path) -> bytes:
    """The files of a folder in a flat zip."""
    return zip_bytes({path.name: path.read_bytes() for path in sorted(folder.iterdir())})


@dataclass
class FileServer:
    """What it serves, how, and what it was asked.

    Attributes:
        files: Content by name.
        etag: Version that it names, with quotes; empty for none.
        knows_ranges: Whether it sends a part when a part is asked for.
        tells_length: Whether it says how long its answers are.
        always_from: The first byte of a part that it sends whatever is asked for; None for what is asked for.
        cut_after: Bytes of a body after which it closes the connection; None for never.
        redirect_to: Where it sends everyone; empty for nowhere.
        ranges: The ``Range`` of each request, "" for the whole file.
    """

    files: dict[str, bytes]
    etag: str = ""
    knows_ranges: bool = True
    tells_length: bool = True
    always_from: int | None = None
    cut_after: int | None = None
    redirect_to: str = ""
    ranges: list[str] = field(default_factory=list)
    address: tuple[str, int] = ("127.0.0.1", 0)

    def url(self, name: str) -> str:
        host, port = self.address
        return f"http://{host}:{port}/{name}"


@contextmanager
def serving(files: dict[str, bytes], host: str = "127.0.0.1") -> Iterator[FileServer]:
    """Serve files while the block runs."""
    state = FileServer(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
            state.ranges.append(self.headers.get("Range", ""))
            _answer(self, state)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        state.address = (host, server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def _answer(request: BaseHTTPRequestHandler, state: FileServer) -> None:
    content = state.files.get(request.path.lstrip("/"))
    if state.redirect_to:
        request.send_response(302)
        request.send_header("Location", state.redirect_to)
        request.end_headers()
    elif content is None:
        request.send_error(404)
    else:
        _send(request, state, content, _first_byte(request, state))


def _first_byte(request: BaseHTTPRequestHandler, state: FileServer) -> int | None:
    if state.always_from is not None:
        return state.always_from
    match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    is_current = request.headers.get("If-Range", state.etag) == state.etag
    return int(match[1]) if match and is_current and state.knows_ranges else None


def _send(request: BaseHTTPRequestHandler, state: FileServer, content: bytes, start: int | None) -> None:
    if start is not None and start >= len(content):
        request.send_error(416)
        return
    body = content[start or 0 :]
    request.send_response(200 if start is None else 206)
    if start is not None:
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    if state.tells_length:
        request.send_header("Content-Length", str(len(body)))
    if state.etag:
        request.send_header("ETag", state.etag)
    request.end_headers()
    with suppress(ConnectionError):  # of a client that has seen enough
        request.wfile.write(body[: state.cut_after])
    request.close_connection = True
