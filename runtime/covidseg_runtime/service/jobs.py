"""A job: one scan to segment, from its upload to its end; what is kept of it on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

from covidseg_runtime.intensity import Window
from covidseg_runtime.segment_settings import SegmentSettings
from covidseg_runtime.spooling import Spool

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[JobState, ...] = ("queued", "running", "done", "failed", "cancelled")

# Result -> its file.
RESULT_FILES: Mapping[str, str] = MappingProxyType(
    {
        "labels": "labels.nii.gz",
        "report": "report.json",
        "preview": "preview.png",
        "page": "page.html",
        "dicom": "dicom.zip",
    }
)


@dataclass(frozen=True)
class JobOptions:
    """What the caller asked for.

    Attributes:
        quality: "fast", "balanced" or "best".
        min_lesion_ml: Smaller infections become lung again.
        window_hu: The scan holds grey levels of this window; None: HU.
        page: Also make the page for people, which takes about as long as the segmentation.

    Raises:
        SettingsError: If one has no meaning.
    """

    quality: str = "balanced"
    min_lesion_ml: float = 0.05
    window_hu: Window | None = None
    page: bool = True

    def __post_init__(self) -> None:
        """Refuse what a segmenter would."""
        self.segment_settings()

    def segment_settings(self, spool: Spool | None = None) -> SegmentSettings:
        """The same for a segmenter."""
        return SegmentSettings(
            min_lesion_ml=self.min_lesion_ml, quality=self.quality, window_hu=self.window_hu, spool=spool
        )


@dataclass(frozen=True)
class Failure:
    """Why there are no results.

    Attributes:
        sentence: What was given, what is expected, how to mend it.
        exit_code: Of `covidseg segment` for the same.
    """

    sentence: str
    exit_code: int


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: "done", "failed" or "cancelled".
        failure: Of a failed one.
        missing: Result -> why it was not made, of a done one.
    """

    state: JobState
    failure: Failure | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One scan.

    Attributes:
        id: 32 hexadecimal digits, drawn by chance; its name on disk.
        scan: Name of the uploaded file on disk; given by us, never by the caller.
        options: What was asked for.
        fingerprint: sha256 of the upload and the options.
        key: sha256 of the caller's idempotency key, if one was given.
        accepted: When the upload was whole.
        state: Where it stands.
        attempts: How often it was begun.
        started: When it was begun last.
        finished: When it ended.
        tiles: Done and total, of a running or done one.
        outcome: Of one that has ended.
        results: Which there are.
        size: Bytes on disk.
    """

    id: str
    scan: str
    options: JobOptions
    fingerprint: str
    accepted: datetime
    key: str | None = None
    state: JobState = "queued"
    attempts: int = 0
    started: datetime | None = None
    finished: datetime | None = None
    tiles: tuple[int, int] | None = None
    outcome: Outcome | None = None
    results: tuple[str, ...] = ()
    size: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.finished is not None

    def queued_again(self) -> Job:
        """The job before it was begun; attempts stay."""
        return replace(self, state="queued", started=None, tiles=None)

    def ended(self, outcome: Outcome) -> Job:
        """The job with its end."""
        return replace(self, state=outcome.state, outcome=outcome, finished=now())


def now() -> datetime:
    """In UTC, to the millisecond."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def job_to_json(job: Job) -> dict[str, Any]:
    """As it is kept on disk."""
    kept = asdict(job)
    for name in ("accepted", "started", "finished"):
        kept[name] = None if kept[name] is None else kept[name].isoformat()
    return kept


def job_from_json(kept: Mapping[str, Any]) -> Job:
    """Read what `job_to_json` made.

    Raises:
        ValueError, TypeError, KeyError: If it is something else.
    """
    window = kept["options"]["window_hu"]
    outcome = kept["outcome"]
    return Job(
        **{
            **kept,
            "options": JobOptions(**{**kept["options"], "window_hu": None if window is None else tuple(window)}),
            "accepted": datetime.fromisoformat(kept["accepted"]),
            "started": None if kept["started"] is None else datetime.fromisoformat(kept["started"]),
            "finished": None if kept["finished"] is None else datetime.fromisoformat(kept["finished"]),
            "tiles": None if kept["tiles"] is None else tuple(kept["tiles"]),
            "outcome": None if outcome is None else _outcome(outcome),
            "results": tuple(kept["results"]),
        }
    )


def _outcome(kept: Mapping[str, Any]) -> Outcome:
    failure = kept["failure"]
    return Outcome(kept["state"], None if failure is None else Failure(**failure), kept["missing"])
