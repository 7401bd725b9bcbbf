"""Jobs: a scan is sent, its state is asked for, its results are fetched, it is removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from covidseg_runtime.segment_settings import QUALITIES
from covidseg_runtime.service.door import JOBS_PATH
from covidseg_runtime.service.file_answer import FileAnswer
from covidseg_runtime.service.job_store import GoneJobError, UnknownJobError
from covidseg_runtime.service.jobs import RESULT_FILES, Job, JobState
from covidseg_runtime.service.messages import JobList, JobMessage, job_message
from covidseg_runtime.service.problems import Problem, problem_responses
from covidseg_runtime.service.service import Service
from covidseg_runtime.service.submission import take_in, with_disk

_ID_SCHEMA = {"pattern": "^[0-9a-f]{32}$"}
JobId = Annotated[str, Path(description="Of the job.", json_schema_extra=_ID_SCHEMA)]

_MEDIA_TYPES: Mapping[str, str] = {
    "labels": "application/gzip",
    "report": "application/json",
    "preview": "image/png",
    "page": "text/html; charset=utf-8",
    "dicom": "application/zip",
}
_WHAT: Mapping[str, str] = {
    "labels": "The label map, NIfTI: 0 background, 1 left lung, 2 right lung, 3 infection.",
    "report": "The report: volumes in mL, percentages, warnings, and what made them.",
    "preview": "A picture: slices with the labels.",
    "page": "A page for people, one file that needs nothing else (extra `report`).",
    "dicom": "For a DICOM series: segmentation, structured report and picture as DICOM, zipped.",
}
# The page brings its own policy; its scripts may run, but never in the name of this service.
_PAGE_POLICY = {"Content-Security-Policy": "sandbox allow-scripts; frame-ancestors 'none'"}

_UPLOAD_BODY: Mapping[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["scan"],
                "additionalProperties": False,
                "properties": {
                    "scan": {
                        "type": "string",
                        "format": "binary",
                        "description": "A chest CT: .nii, .nii.gz, a zip archive of a DICOM series, or one DICOM file.",
                    },
                    "quality": {"type": "string", "enum": list(QUALITIES), "default": "balanced"},
                    "min_lesion_ml": {"type": "number", "minimum": 0, "default": 0.05},
                    "window": {
                        "type": "string",
                        "pattern": "^-([1-9][0-9]{2}|[12][0-9]{3}),([1-9][0-9]{2}|[1-4][0-9]{3})$",
                        "description": "LOW,HIGH in HU, where the scan holds grey levels of it: -1250,250.",
                    },
                    "page": {"type": "boolean", "default": True, "description": "Also make the page for people."},
                },
            },
            "encoding": {"scan": {"contentType": "application/gzip, application/octet-stream, application/zip"}},
        }
    },
}
_LOCATION = {"Location": {"description": "Path of the job.", "schema": {"type": "string"}}}


def job_routes(service: Service) -> APIRouter:
    """The routes of a service's jobs."""
    routes = APIRouter(prefix=JOBS_PATH, tags=["jobs"])
    _add_submission(routes, service)
    _add_list(routes, service)
    _add_job(routes, service)
    for name in RESULT_FILES:
        _add_result(routes, service, name)
    return routes


def _add_submission(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "",
        status_code=202,
        response_model=JobMessage,
        responses={202: {"headers": _LOCATION}, **problem_responses(400, 408, 409, 413, 415, 422, 429)},
        openapi_extra={"requestBody": _UPLOAD_BODY},
    )
    async def submit(
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=256)] = None,
    ) -> JobMessage:
        """Send a scan; the same Idempotency-Key with the same scan and options gives the same job."""
        job = await take_in(service, request, idempotency_key)
        response.headers["Location"] = f"{JOBS_PATH}/{job.id}"
        return job_message(job, service.store)


def _add_list(routes: APIRouter, service: Service) -> None:
    @routes.get("", response_model=JobList, responses=problem_responses(404, 410, 422))
    async def list_jobs(
        state: Annotated[JobState | None, Query(description="Only these.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[str | None, Query(description="Begin behind this job.", json_schema_extra=_ID_SCHEMA)] = None,
    ) -> JobList:
        """List jobs, the newest first."""
        jobs = iter(service.store.newest_first())
        if after is not None:
            _get(service, after)
            next((job for job in jobs if job.id == after), None)  # goes behind it; behind all if it was just removed
        found = [job for job in jobs if state in (None, job.state)]
        shown = found[:limit]
        return JobList(
            jobs=[job_message(job, service.store) for job in shown],
            after=shown[-1].id if len(found) > limit else None,
        )


def _add_job(routes: APIRouter, service: Service) -> None:
    @routes.get("/{job_id}", response_model=JobMessage, responses=problem_responses(404, 410, 422))
    async def status(job_id: JobId) -> JobMessage:
        """Tell where a job stands."""
        return job_message(_get(service, job_id), service.store)

    @routes.delete(
        "/{job_id}",
        response_model=JobMessage,
        responses={
            200: {"description": "It waited, and is cancelled."},
            202: {"description": "It runs, and will be cancelled.", "model": JobMessage},
            204: {"description": "It had ended, and is removed."},
            **problem_responses(404, 410, 422),
        },
    )
    async def cancel(job_id: JobId, response: Response) -> Any:  # noqa: ANN401 - a message, or no content
        """Cancel a job that waits or runs; remove one that has ended, with its results."""
        _get(service, job_id)
        job = await with_disk(service.store.cancel_or_remove, job_id)
        if job is None:
            return Response(status_code=204)
        if job.is_finished:  # of one that runs, its worker tells
            service.metrics.job_ended(job)
        response.status_code = 200 if job.is_finished else 202
        return job_message(job, service.store)


def _add_result(routes: APIRouter, service: Service, name: str) -> None:
    routes.add_api_route(
        f"/{{job_id}}/{name}",
        _fetch(service, name),
        methods=["GET"],
        name=f"fetch {name}",
        summary=f"Fetch {name}",
        description=_WHAT[name],
        status_code=200,
        response_class=FileAnswer,
        responses={
            200: {"description": _WHAT[name], "content": {_MEDIA_TYPES[name].partition(";")[0]: {}}},
            **problem_responses(404, 409, 410, 422),
        },
    )


def _fetch(service: Service, name: str) -> Any:  # noqa: ANN401 - a route
    async def fetch(job_id: JobId) -> FileAnswer:
        job = _get(service, job_id)
        if name not in job.results:
            raise Problem(409, _why_not(job, name))
        try:
            return FileAnswer(
                service.folders.result(job, name),
                media_type=_MEDIA_TYPES[name],
                headers=_PAGE_POLICY if name == "page" else {},
            )
        except FileNotFoundError as error:  # removed this moment
            raise Problem(410, "This job was removed, or its time is over; send the scan again.") from error

    return fetch


def _why_not(job: Job, name: str) -> str:
    if job.outcome is None:
        return f"The job is {job.state}; ask again when its state is done."
    if job.outcome.failure is not None:
        return f"The job failed, so there are no results: {job.outcome.failure.sentence}"
    if job.state == "cancelled":
        return "The job was cancelled, so there are no results; send the scan again."
    return f"There is no {name} of this scan. {job.outcome.missing.get(name, '')}".strip()


def _get(service: Service, job_id: str) -> Job:
    try:
        return service.store.get(job_id)
    except GoneJobError as error:
        raise Problem(410, str(error)) from error
    except UnknownJobError as error:
        raise Problem(404, str(error)) from error
