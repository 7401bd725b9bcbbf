"""What a node is told: who it is, whom it lets in, where results go, how much it takes."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from covidseg_runtime.errors import SettingsError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")  # printable ASCII without a backslash


@dataclass(frozen=True)
class Limits:
    """How much a node takes.

    Attributes:
        instances: Of one series.
        series_bytes: Of one series.
        free_bytes: Left on the disk of the queue.
        associations: At a time.
    """

    instances: int = 20_000
    series_bytes: int = 8 << 30
    free_bytes: int = 2 << 30
    associations: int = 64


@dataclass(frozen=True)
class Tls:
    """Certificates of a node that talks TLS.

    Attributes:
        certificate: Of the node, PEM.
        key: Of the certificate, PEM.
        authority: Whoever calls has to show a certificate that this one signed; None: anyone may call.
    """

    certificate: Path
    key: Path
    authority: Path | None = None


@dataclass(frozen=True)
class PacsSettings:
    """A node.

    Attributes:
        queue: Folder of what was received and is not yet answered; it survives the process.
        ae_title: Its application entity title.
        host: Address it listens on.
        port: Port it listens on; 0 is any free one.
        allowed_titles: Titles of those who may call; empty: any.
        allowed_addresses: Networks of those who may call; empty: any.
        settle_s: A series is whole when nothing of it came for so long, in seconds.
        keep_answered_s: How long received files stay after the answer, so that late slices make a new one.
        limits: How much it takes.
        tls: Certificates; None: no TLS.
    """

    queue: Path
    ae_title: str = "COVIDSEG"
    host: str = "127.0.0.1"
    port: int = 11112
    allowed_titles: tuple[str, ...] = ()
    allowed_addresses: tuple[Network, ...] = ()
    settle_s: float = 5.0
    keep_answered_s: float = 3600.0
    limits: Limits = field(default_factory=Limits)
    tls: Tls | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for title in (self.ae_title, *self.allowed_titles):
            judge_title(title)
        if not 0 < self.settle_s < 3600:
            raise SettingsError(f"settle_s is {self.settle_s}: more than 0 and less than 3600 seconds are expected.")

    def lets_in(self, address: str) -> bool:
        """Whether a caller's address is allowed."""
        if not self.allowed_addresses:
            return True
        caller = ipaddress.ip_address(address)
        # Where the node listens by IPv6, a caller by IPv4 is shown as ::ffff:10.0.0.5.
        caller = getattr(caller, "ipv4_mapped", None) or caller
        return any(caller in network for network in self.allowed_addresses)


def judge_title(title: str) -> None:
    """Refuse what is no application entity title.

    Raises:
        SettingsError: If it is empty, too long or holds what no title may.
    """
    if not _AE_TITLE.fullmatch(title) or not title.strip():
        raise SettingsError(f"{title!r} is no AE title: 1 to 16 printable characters without a backslash are expected.")


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Addresses and networks such as 10.0.0.5 and 10.1.0.0/16.

    Raises:
        SettingsError: If one is neither.
    """
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise SettingsError(f"{error}: an address or a network such as 10.1.0.0/16 is expected.") from error
