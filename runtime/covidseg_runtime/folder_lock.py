"""A folder that one process works in at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from covidseg_runtime.errors import SettingsError


@contextmanager
def held_by_one(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file while the block runs; it ends with its process, however that ends.

    Args:
        lock: The file; made if missing.
        refusal: The sentence for who comes second.

    Raises:
        SettingsError: If another process holds it.
    """
    import fcntl  # not on Windows

    with lock.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(refusal) from error
        yield
