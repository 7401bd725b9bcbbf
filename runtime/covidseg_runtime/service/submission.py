"""Taking a scan in: a place for it first, its body then, the job in the end."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from covidseg_runtime.errors import OutputError
from covidseg_runtime.service.job_store import (
    Admission,
    GoneJobError,
    KeyInUseError,
    QueueFullError,
    StorageFullError,
)
from covidseg_runtime.service.jobs import Job, now
from covidseg_runtime.service.problems import Problem
from covidseg_runtime.service.service import Service
from covidseg_runtime.service.upload import Upload, receive_upload

_SECONDS_TO_THE_DISK = 60
_DISK = "The service cannot write to its disk; ask whoever runs it to look at it."

P = ParamSpec("P")
T = TypeVar("T")


async def with_disk(action: Callable[P, T], *arguments: P.args, **more: P.kwargs) -> T:
    """Do what works on the disk in a thread.

    Raises:
        Problem: For what the store raises.
    """
    try:
        return await run_in_threadpool(action, *arguments, **more)
    except GoneJobError as error:
        raise Problem(410, str(error)) from error
    except QueueFullError as error:
        raise Problem(429, str(error)) from error
    except KeyInUseError as error:
        raise Problem(409, str(error)) from error
    except StorageFullError as error:
        raise Problem(503, str(error), {"Retry-After": str(_SECONDS_TO_THE_DISK)}) from error
    except OutputError as error:  # where it lies is nobody's business but the service's
        raise Problem(503, _DISK, {"Retry-After": str(_SECONDS_TO_THE_DISK)}) from error


async def take_in(service: Service, request: Request, idempotency_key: str | None) -> Job:
    """Make a job of a request, or find the one that its key made; without a place for it, its body is not read.

    Raises:
        Problem: If it is no scan, or there is no place for it.
    """
    store = service.store
    key = None if idempotency_key is None else hashlib.sha256(idempotency_key.encode()).hexdigest()
    admission = await _admit(service, request, key)
    job = None
    try:
        upload = await _receive(request, admission)
        earlier = None if key is None else store.of_key(key)
        if earlier is not None:
            return _same(earlier, upload)
        made = Job(admission.job_id, upload.scan, upload.options, upload.fingerprint, now(), key)
        try:
            job = await with_disk(store.accept, admission, made)
        except asyncio.CancelledError:  # the service ends; the thread that accepts does not, and needs the folder
            job = made
            raise
        return job
    finally:
        if job is None:
            store.abandon(admission)


async def _admit(service: Service, request: Request, key: str | None) -> Admission:
    most, length = service.settings.limits.upload_bytes, request.headers.get("content-length", "")
    size = min(int(length), most) if length.isdecimal() else most
    try:
        return await with_disk(service.store.admit, size, key)
    except Problem as problem:
        if problem.status == 429:
            problem.headers["Retry-After"] = str(service.store.seconds_to_wait())
        raise


async def _receive(request: Request, admission: Admission) -> Upload:
    try:
        return await receive_upload(request.headers.get("content-type"), request.stream(), admission.folder)
    except OutputError as error:
        raise Problem(503, _DISK, {"Retry-After": str(_SECONDS_TO_THE_DISK)}) from error


def _same(earlier: Job, upload: Upload) -> Job:
    if earlier.fingerprint != upload.fingerprint:
        raise Problem(409, "The Idempotency-Key was used for another scan or other options; give a new one.")
    return earlier
