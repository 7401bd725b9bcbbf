"""What went wrong, as RFC 9457 has it: one sentence that says what was given, what is expected and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

PROBLEM_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818 - the name of the standard
    """An answer that is an error.

    Attributes:
        status: Of HTTP.
        detail: The sentence.
        headers: That the status asks for.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        """Keep them."""
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    def response(self, path: str) -> Response:
        """The answer to a request for a path."""
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if path.startswith("/v2"):
            body["error"] = self.detail
        content = json.dumps(body, ensure_ascii=False).encode()
        return Response(content, self.status, self.headers, media_type=PROBLEM_TYPE)


_WHEN: Mapping[int, str] = {
    400: "The request is malformed.",
    401: "The token is missing or wrong.",
    403: "The request comes from a page of another site, or by a name that is not this service's.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    409: "It does not fit the state: no such result, or not yet; or a key that was used for something else.",
    410: "It was there, and is removed.",
    413: "The body is too large.",
    415: "The body is of a kind that is not read.",
    422: "A value has no meaning.",
    429: "Too much is asked at once; Retry-After tells when to come again.",
    500: "A fault of the service.",
    503: "The service cannot do this now; Retry-After tells when to come again.",
}
_ALWAYS = (401, 403, 500, 503)
_WAITING = (429, 503)
_SECONDS = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
_SCHEME = {"description": "How to show a token.", "schema": {"type": "string"}}
_REFERENCE = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}

PROBLEM_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "description": "RFC 9457.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was given, what is expected, how to mend it."},
        "error": {"type": "string", "description": "Under /v2: the detail, where clients of KServe look for it."},
    },
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside its own: these, and those that any route may."""
    return {status: _describe(status) for status in sorted({*statuses, *_ALWAYS})}


def _describe(status: int) -> dict[str, Any]:
    described: dict[str, Any] = {"description": _WHEN[status], "content": _REFERENCE}
    if status in _WAITING:
        described["headers"] = {"Retry-After": _SECONDS}
    if status == 401:
        described["headers"] = {"WWW-Authenticate": _SCHEME}
    return described
