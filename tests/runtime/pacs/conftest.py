"""What every test of a node does at its end."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def collect_sockets() -> Iterator[None]:
    """Collect, in its own test, the sockets of refused connections, which pynetdicom leaves to the collector."""
    yield
    gc.collect()
