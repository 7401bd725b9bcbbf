"""The application: its routes, its errors, its description, and the door in front of all."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp

import covidseg_runtime
from covidseg_runtime.report import LIMITS, NOTICE
from covidseg_runtime.service.door import Door
from covidseg_runtime.service.inference_routes import inference_routes
from covidseg_runtime.service.job_routes import job_routes
from covidseg_runtime.service.messages import Live, Ready
from covidseg_runtime.service.metrics import METRICS_TYPE
from covidseg_runtime.service.problems import PROBLEM_SCHEMA, Problem, problem_responses
from covidseg_runtime.service.service import Service

_DESCRIPTION = f"Infected lung on chest CT: jobs, and KServe v2 inference. {NOTICE} {LIMITS}"
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_LONGEST_VALUE = 60

T = TypeVar("T")


def create_application(service: Service) -> ASGIApp:
    """Everything that answers, for an ASGI server."""
    return Door(describe_application(service), service.settings, service.metrics)


def describe_application(service: Service) -> FastAPI:
    """The application without its door."""
    app = FastAPI(
        title="covidseg",
        version=covidseg_runtime.__version__,
        description=_DESCRIPTION,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        # Where it is configured, FastAPI would tell others of each request.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        generate_unique_id_function=_operation_id,
    )
    for kind, handler in (
        (Problem, _answer_problem),
        (HTTPException, _answer_http),
        (RequestValidationError, _answer_invalid),
        (ClientDisconnect, _answer_nobody),
        (Exception, _answer_fault),
    ):
        app.add_exception_handler(kind, handler)
    app.include_router(job_routes(service))
    app.include_router(_health_routes(service))
    app.include_router(inference_routes(service))
    app.include_router(_about_routes(service, app))
    _describe(app, service)
    return app


def _operation_id(route: APIRoute) -> str:
    """From the path, which is unlike the name of a function unique."""
    words = re.findall(r"\w+", route.path)
    return "_".join((*sorted(method.lower() for method in route.methods or ()), *words))


def _health_routes(service: Service) -> APIRouter:
    routes = APIRouter(tags=["health"])
    open_responses = {status: said for status, said in problem_responses().items() if status != 401}
    ready_responses = {**open_responses, 503: {"description": "It cannot take a job now.", "model": Ready}}

    @routes.get("/health/live", responses=open_responses)
    @routes.get("/v2/health/live", responses=open_responses)
    async def live() -> Live:
        """Whether the process answers."""
        return Live()

    @routes.get("/health/ready", responses=ready_responses)
    @routes.get("/v2/health/ready", responses=ready_responses)
    def ready(response: Response) -> Ready:  # in a thread, as it asks the disk
        """Whether a job would be taken: the model is loaded, the queue has a place, the disk has room."""
        why = service.why_not_ready()
        if why is not None:
            response.status_code = 503
        return Ready(ready=why is None, reason=why)

    return routes


def _about_routes(service: Service, app: FastAPI) -> APIRouter:
    routes = APIRouter(tags=["about"])

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **problem_responses()},
    )
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.text(), media_type=METRICS_TYPE)

    @routes.get("/", response_class=Response, responses={200: {"content": {"text/html": {}}}, **problem_responses()})
    async def start() -> Response:
        """A page that names every path."""
        headers = {"Content-Security-Policy": _PAGE_POLICY}
        return Response(_start_page(app.openapi()), media_type="text/html; charset=utf-8", headers=headers)

    return routes


def _describe(app: FastAPI, service: Service) -> None:
    """Add to the description what FastAPI does not know: the form of problems, and the token."""
    description = app.openapi()
    components = description.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = dict(PROBLEM_SCHEMA)
    if service.settings.token is not None:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in description["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in service.settings.open_paths else [{"token": []}]


def _start_page(description: Mapping[str, Any]) -> bytes:
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(operation.get('description') or operation.get('summary', ''))}</td></tr>\n"
        for path, operations in description["paths"].items()
        for method, operation in operations.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>covidseg</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}}td{{padding:.2rem 1rem .2rem 0;
vertical-align:top}}</style></head>
<body><h1>covidseg {html.escape(covidseg_runtime.__version__)}</h1>
<p><strong>{html.escape(NOTICE)}</strong> {html.escape(LIMITS)}</p>
<p>Described in <a href="/openapi.json">/openapi.json</a>.</p>
<table>
{rows}</table></body></html>
""".encode()


def _answer_problem(request: Request, problem: Exception) -> Response:
    return _as(problem, Problem).response(request.url.path)


def _answer_http(request: Request, error: Exception) -> Response:
    """What the library refuses: an unknown path, a method that a path does not have."""
    found = _as(error, HTTPException)
    headers = dict(found.headers or {})
    if found.status_code == 405:  # the library names those of one of several routes
        headers["Allow"] = ", ".join(_methods_of(request))
    sentences = {
        404: f"There is nothing at {request.url.path[:_LONGEST_VALUE]!r}; GET / names every path.",
        405: f"{request.method[:_LONGEST_VALUE]} is not for this path; GET / names what is.",
    }
    return Problem(found.status_code, sentences.get(found.status_code, str(found.detail)), headers).response(
        request.url.path
    )


def _methods_of(request: Request) -> list[str]:
    """What a path can be asked, by the description."""
    for template, operations in request.app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), request.url.path):
            return sorted(method.upper() for method in operations)
    return []


def _answer_invalid(request: Request, error: Exception) -> Response:
    first = _as(error, RequestValidationError).errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    given = repr(first.get("input"))[:_LONGEST_VALUE]
    return Problem(422, f"{name} is {given}: {str(first['msg']).lower()}.").response(request.url.path)


def _answer_nobody(request: Request, _error: Exception) -> Response:
    return Problem(400, "The connection ended before the body did.").response(request.url.path)


def _answer_fault(request: Request, error: Exception) -> Response:
    return Problem(500, f"An unexpected {type(error).__name__} in the service; its log shows where.").response(
        request.url.path
    )


def _as(error: Exception, kind: type[T]) -> T:
    """The error as what it was registered for."""
    if not isinstance(error, kind):
        raise TypeError(f"{type(error).__name__} is no {kind.__name__}") from error
    return error
