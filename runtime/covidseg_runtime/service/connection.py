"""One connection: not too many at a time, and none that is held open without a request."""

from __future__ import annotations

import asyncio
import json
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from covidseg_runtime.service.settings import ServiceLimits

_DETAIL = "Too many connections are open; close some, or come again in a second."
_BODY = json.dumps({"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": _DETAIL}).encode()
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


class GuardedProtocol(H11Protocol):
    """The protocol of uvicorn, with the two limits that it does not have.

    Its own limit of connections still reads each request, and it waits for a header, or for the rest of a body that it
    has answered already, without end.

    Attributes:
        limits: How many, and how long.
    """

    limits: ClassVar[ServiceLimits]

    _deadline: asyncio.TimerHandle | None = None
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin, or refuse what is one too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._is_refused = True
            transport.write(_TOO_MANY)
            transport.close()
            return
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if not self._is_refused:
            super().data_received(data)
            self._see_whether_answering()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._await_request()
        super().on_response_complete()  # the next request may be here already
        self._see_whether_answering()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        """From now on, data that trickles in does not put the end off."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.limits.header_s, self.transport.abort)

    def _see_whether_answering(self) -> None:
        """A request that has begun has limits of its own."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def guarded_protocol(limits: ServiceLimits) -> type[GuardedProtocol]:
    """The protocol with its limits; uvicorn makes one for each connection."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})
