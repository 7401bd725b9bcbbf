"""KServe's v2 protocol: the engine alone. Preparing a scan and putting tiles together stay with the caller."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Path, Request
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import covidseg_runtime
from covidseg_runtime.engines import FILE_OF_PRECISION
from covidseg_runtime.errors import EngineError
from covidseg_runtime.onnx_guard import tensor_names
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.service.problems import Problem, problem_responses
from covidseg_runtime.service.service import Service
from covidseg_runtime.service.tensors import (
    BINARY_HEADER,
    DATATYPE,
    InferenceRequest,
    Signature,
    answer_header,
    binary_parts,
    in_pieces,
    json_parts,
    parse_request,
    request_schema,
)

VERSION = "1"
_PLATFORMS = {"openvino": "openvino", "onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
_UNSAFE = re.compile(r"[^A-Za-z0-9_]+")
_SECONDS_TO_A_PLACE = 1

HeaderLength = Annotated[
    str | None, Header(alias=BINARY_HEADER, description="Bytes of the JSON in front of binary tensors.")
]
ModelName = Annotated[str, Path(description="Of the model; GET /v2 names it.")]
ModelVersion = Annotated[str, Path(description=f"Of the model; {VERSION}.")]

_INFER_ANSWER = {
    200: {
        "description": "The logits, as JSON, or as bytes behind it.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["model_name", "outputs"]}},
            "application/octet-stream": {},
        },
    }
}


def model_name(segmenter: Segmenter) -> str:
    """As in a model repository for Triton that covidseg exports: bundle and precision of the file."""
    precision = FILE_OF_PRECISION[segmenter.engine.precision]
    return _UNSAFE.sub("-", f"{segmenter.bundle.name}-{precision}").strip("-")


def read_signature(segmenter: Segmenter, most_tiles: int) -> Signature:
    """What the network of a segmenter takes and gives.

    Raises:
        BundleError: If its file cannot be read.
    """
    bundle = segmenter.bundle
    tiles, logits = tensor_names(bundle.model_path(FILE_OF_PRECISION[segmenter.engine.precision]))
    return Signature(tiles, logits, bundle.tile_plan.tile_shape, len(bundle.classes), most_tiles)


class _Model:
    """The one model: what is said of it, and what it computes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.name = model_name(service.segmenter)
        self.signature = read_signature(service.segmenter, service.settings.limits.infer_tiles)
        self._platform = _PLATFORMS.get(service.segmenter.engine.name, service.segmenter.engine.name)

    def judge(self, name: str, version: str = VERSION) -> None:
        """Refuse what is another model."""
        if (name, version) != (self.name, VERSION):
            raise Problem(404, f"There is no such model; {self.name} in version {VERSION} is here.")

    def describe(self) -> dict[str, Any]:
        """Metadata."""
        one = self.signature
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": self._platform,
            "inputs": [{"name": one.tiles, "datatype": DATATYPE, "shape": [-1, 1, *one.tile_shape]}],
            "outputs": [{"name": one.logits, "datatype": DATATYPE, "shape": [-1, one.classes, *one.tile_shape]}],
        }

    async def infer(self, request: Request, header_length: str | None) -> Response:
        """Compute; with as many requests at work as may, the body is not read."""
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "The body is compressed; send it as it is.")
        inferences = self._service.inferences
        if not inferences.take_place():
            raise Problem(
                429,
                "As many inference requests are at work as may; come again in a second.",
                {"Retry-After": str(_SECONDS_TO_A_PLACE)},
            )
        try:
            answer = await self._answer(await request.body(), header_length)
        except BaseException:
            inferences.give_back()
            raise
        return _PlacedAnswer(answer, inferences.give_back)

    async def _answer(self, body: bytes, header_length: str | None) -> Response:
        def compute() -> tuple[InferenceRequest, NDArray[np.float32]]:
            parsed = parse_request(body, header_length, self.signature)
            return parsed, self._service.inferences.predict(parsed.tiles)

        loop = asyncio.get_running_loop()
        try:
            parsed, logits = await loop.run_in_executor(self._service.inferences.threads, compute)
        except EngineError as error:
            raise Problem(500, f"{error}") from error
        self._service.metrics.inferred(len(logits))
        header = answer_header(parsed, (self.name, VERSION), self.signature, logits)
        if parsed.is_binary:
            text, numbers = binary_parts(header, logits)
            sizes = {BINARY_HEADER: str(len(text)), "Content-Length": str(len(text) + len(numbers))}
            return StreamingResponse(in_pieces(text, numbers), headers=sizes, media_type="application/octet-stream")
        if not np.isfinite(logits).all():
            raise Problem(400, "The logits of these tiles are not finite, which JSON cannot tell; ask for binary data.")
        return StreamingResponse(json_parts(header, logits), media_type="application/json")


class _PlacedAnswer(Response):
    """An answer that keeps its place among the requests until it is sent: as long as its logits are in memory."""

    def __init__(self, answer: Response, give_back: Callable[[], None]) -> None:
        super().__init__(status_code=answer.status_code)
        self._answer, self._give_back = answer, give_back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        finally:
            self._give_back()


def inference_routes(service: Service) -> APIRouter:
    """The routes of a service's engine."""
    routes = APIRouter(prefix="/v2", tags=["KServe v2"])
    model = _Model(service)

    @routes.get("", responses=problem_responses())
    async def server() -> dict[str, Any]:
        """Tell name, version, extensions, and the model that is here."""
        return {
            "name": "covidseg",
            "version": covidseg_runtime.__version__,
            "extensions": ["binary_tensor_data"],
            "models": [model.name],
        }

    _add_descriptions(routes, model)
    _add_inference(routes, model)
    return routes


def _add_descriptions(routes: APIRouter, model: _Model) -> None:
    @routes.get("/models/{name}", responses=problem_responses(404, 422))
    async def metadata(name: ModelName) -> dict[str, Any]:
        """Tell what the model takes and gives."""
        model.judge(name)
        return model.describe()

    @routes.get("/models/{name}/versions/{version}", responses=problem_responses(404, 422))
    async def metadata_of_version(name: ModelName, version: ModelVersion) -> dict[str, Any]:
        """Tell what the model takes and gives."""
        model.judge(name, version)
        return model.describe()

    @routes.get("/models/{name}/ready", responses=problem_responses(404, 422))
    async def ready(name: ModelName) -> dict[str, Any]:
        """Tell whether the model can be asked."""
        model.judge(name)
        return {"name": model.name, "ready": True}

    @routes.get("/models/{name}/versions/{version}/ready", responses=problem_responses(404, 422))
    async def ready_of_version(name: ModelName, version: ModelVersion) -> dict[str, Any]:
        """Tell whether the model can be asked."""
        model.judge(name, version)
        return {"name": model.name, "ready": True}


def _add_inference(routes: APIRouter, model: _Model) -> None:
    body = {
        "application/json": {"schema": request_schema(model.signature)},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }
    described: dict[str, Any] = {
        "responses": {**_INFER_ANSWER, **problem_responses(400, 404, 408, 413, 415, 422, 429)},
        "openapi_extra": {"requestBody": {"required": True, "content": body}},
        "response_class": Response,
    }

    @routes.post("/models/{name}/infer", **described)
    async def infer(request: Request, name: ModelName, header_length: HeaderLength = None) -> Response:
        """Compute logits of tiles, (N, 1, Z, Y, X) clipped and scaled, in turn with the jobs."""
        model.judge(name)
        return await model.infer(request, header_length)

    @routes.post("/models/{name}/versions/{version}/infer", **described)
    async def infer_of_version(
        request: Request, name: ModelName, version: ModelVersion, header_length: HeaderLength = None
    ) -> Response:
        """Compute logits of tiles, (N, 1, Z, Y, X) clipped and scaled, in turn with the jobs."""
        model.judge(name, version)
        return await model.infer(request, header_length)
