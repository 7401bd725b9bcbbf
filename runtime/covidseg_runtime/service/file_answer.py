"""A file as an answer. It is opened before the answer begins, so that one that is removed meanwhile is sent whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_CHUNK = 1 << 18


class FileAnswer(Response):
    """Sends a file, in pieces.

    Raises:
        FileNotFoundError: If there is no such file.
    """

    def __init__(self, path: Path, media_type: str, headers: Mapping[str, str]) -> None:
        """Open it."""
        self._file = path.open("rb")
        size = os.fstat(self._file.fileno()).st_size
        super().__init__(None, 200, {**headers, "Content-Length": str(size)}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._file as file:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while chunk := await run_in_threadpool(file.read, _CHUNK):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
