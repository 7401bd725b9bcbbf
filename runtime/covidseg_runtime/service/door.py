"""What every request passes: who asks, from where, how much, how long; and what all answers tell."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covidseg_runtime.service.metrics import Metrics
from covidseg_runtime.service.problems import Problem
from covidseg_runtime.service.settings import ServiceSettings, is_loopback

_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_FORM_OVERHEAD = 1 << 16  # of the parts around a scan
JOBS_PATH = "/v1/jobs"


class Stalled(Exception):  # noqa: N818 - nothing of ours went wrong
    """The caller does not take the answer."""


class Door:
    """The outermost part of the application.

    Args:
        app: What is behind it.
        settings: Who may ask, and how much.
        metrics: Where answers are counted.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics) -> None:
        """Keep them."""
        self._app, self._settings, self._metrics = app, settings, metrics
        token = settings.token
        self._token_digest = None if token is None else hashlib.sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        passage = _Passage(scope, receive, send, self._settings, self._metrics)
        try:
            self._judge(scope, passage)
            await self._app(scope, passage.receive, passage.send)
        except Problem as problem:
            await problem.response(scope["path"])(scope, passage.receive, passage.send)
        except Stalled:
            pass  # the connection is closed, as the answer is not whole
        finally:
            passage.end()

    def _judge(self, scope: Scope, passage: _Passage) -> None:
        """Refuse who may not ask, before anything else.

        Raises:
            Problem: If it is so.
        """
        headers = Headers(scope=scope)
        self._refuse_other_sites(headers)
        if self._token_digest is not None and scope["path"] not in self._settings.open_paths:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            shown = hashlib.sha256(token.strip().encode()).digest()
            if not hmac.compare_digest(shown, self._token_digest) or scheme.lower() != "bearer":
                raise Problem(
                    401,
                    "The request shows no valid token; send the header Authorization: Bearer TOKEN.",
                    {"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > passage.most_bytes:
            raise too_large(passage.most_bytes)

    def _refuse_other_sites(self, headers: Headers) -> None:
        """A page of another site, open in a browser of this machine, can send requests here, but not without saying so.

        Without a token that is all that keeps it out; by a name of its own (DNS rebinding) it could even read answers.
        """
        host = headers.get("host", "")
        if self._token_digest is None and not is_loopback(_name_of(host)):
            raise Problem(
                403, "Without a token this service answers to 127.0.0.1 and localhost alone; a proxy needs a token."
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Problem(403, "The request comes from a page of another site; send it from a program.")


class _Passage:
    """One request and its answer on their way through the door."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: ServiceSettings, metrics: Metrics) -> None:
        self._scope, self._receive, self._send, self._metrics = scope, receive, send, metrics
        limits = settings.limits
        self._began = time.monotonic()
        self._idle_s, self._ends = limits.idle_s, self._began + limits.transfer_s
        is_upload = scope["path"] == JOBS_PATH
        self.most_bytes = limits.upload_bytes + _FORM_OVERHEAD if is_upload else limits.infer_bytes
        self._received = self._status = 0
        self._is_whole = False

    async def receive(self) -> Message:
        """The next part of the body; behind its end, whether the caller is still there, however long that takes.

        Raises:
            Problem: If the body is too large or too slow.
        """
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._seconds_left()):
                message = await self._receive()
        except TimeoutError as error:
            raise Problem(
                408,
                f"Nothing of the body came for {self._idle_s:g} s, or all of it took too long; send it faster.",
                {"Connection": "close"},
            ) from error
        self._is_whole = not message.get("more_body", False)
        count = len(message.get("body", b""))
        self._metrics.received(count)
        self._received += count
        if self._received > self.most_bytes:
            raise too_large(self.most_bytes)
        return message

    async def send(self, message: Message) -> None:
        """The next part of the answer.

        Raises:
            Stalled: If the caller does not take it.
        """
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        try:
            async with asyncio.timeout(self._seconds_left()):
                await self._send(message)
        except TimeoutError as error:
            raise Stalled from error
        self._metrics.sent(len(message.get("body", b"")))

    def end(self) -> None:
        """Count the answer, if there was one."""
        route = getattr(self._scope.get("route"), "path", "none")
        if self._status:
            self._metrics.answered(self._scope["method"], route, self._status, time.monotonic() - self._began)

    def _seconds_left(self) -> float:
        return max(0.0, min(self._idle_s, self._ends - time.monotonic()))


def too_large(most: int) -> Problem:
    """What a body of more bytes is answered."""
    return Problem(
        413, f"The body is larger than {most / 2**20:g} MiB, the most that this service takes.", {"Connection": "close"}
    )


def _name_of(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
