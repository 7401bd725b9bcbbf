"""Work that several processes share: who holds a lock file does it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim(lock: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file while the block runs; whether it was free. The end of the process releases it."""
    import fcntl

    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
