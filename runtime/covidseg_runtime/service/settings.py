"""What a service is told: where it listens, who may ask, how much it takes and how long it keeps results."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from covidseg_runtime.errors import SettingsError

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")  # what RFC 6750 lets a bearer token be, and not a short one

HEALTH_PATHS = frozenset(("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"))


@dataclass(frozen=True)
class ServiceLimits:
    """How much a service takes.

    Attributes:
        queue: Jobs that wait, those that are being uploaded among them.
        upload_bytes: Of one scan.
        jobs: Kept at a time, those that ended among them.
        disk_bytes: Of all uploads and results together.
        free_bytes: Left on the disk.
        connections: At a time.
        header_s: From a connection, or the last answer on it, to the end of the next request's header, in seconds.
        idle_s: Without a byte of a body, to or from the caller, in seconds.
        transfer_s: For a whole request and its answer, in seconds.
        attempts: How often a job is begun: more than once where the process ended while it worked on it.
        infer_bytes: Of one inference request.
        infer_tiles: Of one inference request.
        infers: Inference requests at a time.
    """

    queue: int = 32
    upload_bytes: int = 1 << 30
    jobs: int = 20_000
    disk_bytes: int = 20 << 30
    free_bytes: int = 1 << 30
    connections: int = 128
    header_s: float = 10.0
    idle_s: float = 30.0
    transfer_s: float = 900.0
    attempts: int = 3
    infer_bytes: int = 64 << 20
    infer_tiles: int = 4
    infers: int = 4

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            SettingsError: If a limit is not positive; `free_bytes` may be 0.
        """
        for name, value in vars(self).items():
            if value <= 0 and not (name == "free_bytes" and value == 0):
                raise SettingsError(f"{name} is {value}: a positive number is expected.")
        if self.upload_bytes > self.disk_bytes:
            raise SettingsError(
                f"One upload may have {self.upload_bytes >> 20} MiB, all uploads and results only "
                f"{self.disk_bytes >> 20} MiB; give them more room, or an upload less."
            )


@dataclass(frozen=True)
class Certificate:
    """Of a service that talks TLS.

    Attributes:
        chain: The certificate, PEM.
        key: Its key, PEM.
    """

    chain: Path
    key: Path


@dataclass(frozen=True)
class ServiceSettings:
    """A service.

    Attributes:
        folder: Where uploads and results lie; it survives the process.
        host: Address it listens on.
        port: Port it listens on; 0 is any free one.
        token: What callers have to show; None: nobody is asked, which only an address of this machine allows.
        open_paths: Paths for which no token is asked, though there is one.
        keep_s: How long results are kept, in seconds.
        workers: Scans at a time; they take turns at the one engine.
        limits: How much it takes.
        certificate: None: no TLS.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    open_paths: frozenset[str] = HEALTH_PATHS
    keep_s: float = 24 * 3600.0
    workers: int = 1
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be, and what would be open to a network.

        Raises:
            SettingsError: If it is so.
        """
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise SettingsError(
                "The token is no token: 16 to 512 letters, digits and -._~+/= are expected; make one with "
                "`openssl rand -hex 32`."
            )
        if self.token is None and not self.is_local:
            raise SettingsError(
                f"{self.host} can be reached from a network, and no token is set: give --token-file or "
                "COVIDSEG_SERVE_TOKEN, or listen on 127.0.0.1."
            )
        if not self.keep_s > 0 or self.workers < 1:
            raise SettingsError(f"keep_s is {self.keep_s}, workers {self.workers}: positive numbers are expected.")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or an address, without a port, is this machine's own to itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
