"""What is said over the wire, as OpenAPI describes it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from covidseg_runtime.service.job_store import JobStore
from covidseg_runtime.service.jobs import Job, JobState


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class Tiles(_Message):
    """How far a job is."""

    done: int
    total: int


class Error(_Message):
    """Why a job has no results."""

    sentence: str = Field(description="What was given, what is expected, how to mend it.")
    exit_code: int = Field(description="Of `covidseg segment` for the same: 1 other failure, 3 unsuitable scan.")


class Options(_Message):
    """What was asked for."""

    quality: str
    min_lesion_ml: float
    window: tuple[float, float] | None = Field(description="Lowest and highest HU of grey levels.")
    page: bool


class JobMessage(_Message):
    """One scan to segment."""

    id: str = Field(pattern="^[0-9a-f]{32}$")
    state: JobState
    options: Options
    accepted: str = Field(description="UTC, ISO 8601.")
    started: str | None
    finished: str | None
    expires: str | None = Field(description="When the job and its results are removed.")
    ahead: int | None = Field(description="How many jobs wait before this one, of one that waits.")
    tiles: Tiles | None = Field(description="Of one that is running or done.")
    error: Error | None = Field(description="Of one that failed.")
    results: dict[str, str] = Field(description="Result to its path, of one that is done.")
    missing: dict[str, str] = Field(description="Result to why it was not made, of one that is done.")


class JobList(_Message):
    """Jobs, the newest first."""

    jobs: list[JobMessage]
    after: str | None = Field(description="Ask again with this `after` for those that follow; null: there are none.")


class Live(_Message):
    """The process answers."""

    live: bool = True


class Ready(_Message):
    """Whether a job would be taken."""

    ready: bool
    reason: str | None = Field(description="Why it is not ready.")


def job_message(job: Job, store: JobStore) -> JobMessage:
    """What is told of a job."""
    outcome = job.outcome
    failure = None if outcome is None else outcome.failure
    return JobMessage(
        id=job.id,
        state=job.state,
        options=Options(
            quality=job.options.quality,
            min_lesion_ml=job.options.min_lesion_ml,
            window=job.options.window_hu,
            page=job.options.page,
        ),
        accepted=job.accepted.isoformat(timespec="milliseconds"),
        started=None if job.started is None else job.started.isoformat(timespec="milliseconds"),
        finished=None if job.finished is None else job.finished.isoformat(timespec="milliseconds"),
        expires=store.expires(job),
        ahead=store.ahead_of(job.id),
        tiles=None if job.tiles is None else Tiles(done=job.tiles[0], total=job.tiles[1]),
        error=None if failure is None else Error(sentence=failure.sentence, exit_code=failure.exit_code),
        results={name: f"/v1/jobs/{job.id}/{name}" for name in job.results},
        missing={} if outcome is None else dict(outcome.missing),
    )
