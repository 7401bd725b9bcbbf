"""Numbers about the service for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from covidseg_runtime.service.job_store import JobStore
from covidseg_runtime.service.jobs import Job

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = frozenset(("GET", "POST", "DELETE"))
_REQUEST_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300)
_JOB_BUCKETS = (1, 2, 5, 10, 20, 60, 120, 300, 900, 3600)


class Metrics:
    """What is counted."""

    def __init__(self) -> None:
        """Start at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "covidseg_http_requests", "Answers.", ("method", "route", "status"), registry=self.registry
        )
        self._request_seconds = Histogram(
            "covidseg_http_request_seconds",
            "From a request's header to the end of its answer.",
            ("route",),
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self._received = Counter("covidseg_http_received_bytes", "Of bodies.", registry=self.registry)
        self._sent = Counter("covidseg_http_sent_bytes", "Of bodies.", registry=self.registry)
        self._jobs = Counter("covidseg_jobs", "Jobs that ended.", ("outcome",), registry=self.registry)
        for outcome in ("done", "failed", "cancelled"):
            self._jobs.labels(outcome)
        self._job_seconds = Histogram(
            "covidseg_job_seconds", "From begin to end of a job.", buckets=_JOB_BUCKETS, registry=self.registry
        )
        self._wait_seconds = Histogram(
            "covidseg_job_wait_seconds",
            "From the acceptance of a job to its begin.",
            buckets=_JOB_BUCKETS,
            registry=self.registry,
        )
        self._tiles = Counter("covidseg_inference_tiles", "Tiles of inference requests.", registry=self.registry)

    def watch(self, store: JobStore) -> None:
        """Also tell what is in the store, as it is when somebody asks."""
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "covidseg_queue_length": ("Jobs that wait or are being uploaded.", store.queue_length),
            "covidseg_jobs_running": ("Jobs that are worked on.", lambda: store.counts()["running"]),
            "covidseg_storage_bytes": ("Of uploads and results.", store.used_bytes),
        }
        for name, (meaning, number) in gauges.items():
            Gauge(name, meaning, registry=self.registry).set_function(number)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answer was sent."""
        # Whatever a caller makes up must not become a label of its own.
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def received(self, count: int) -> None:
        """So many bytes of a body came."""
        self._received.inc(count)

    def sent(self, count: int) -> None:
        """So many bytes of a body went."""
        self._sent.inc(count)

    def inferred(self, tiles: int) -> None:
        """So many tiles were computed for an inference request."""
        self._tiles.inc(tiles)

    def job_ended(self, job: Job) -> None:
        """A job has its end."""
        self._jobs.labels(job.state).inc()
        if job.started is not None and job.finished is not None:
            self._job_seconds.observe((job.finished - job.started).total_seconds())
            self._wait_seconds.observe((job.started - job.accepted).total_seconds())

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
