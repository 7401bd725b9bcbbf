"""Ctrl-C and SIGTERM as a wish that is met between two steps, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopWish:
    """Whether somebody asked this training to stop."""

    def __init__(self) -> None:
        """Nobody did."""
        self.is_made = False

    def make(self, number: int, frame: FrameType | None) -> None:
        """Note the wish; as a signal handler. A second Ctrl-C stops at once."""
        if self.is_made:
            raise KeyboardInterrupt
        self.is_made = True


@contextmanager
def stop_on_signals() -> Iterator[StopWish]:
    """Catch SIGINT and SIGTERM while the block runs; only the main thread can, elsewhere nothing is caught."""
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.signal(number, wish.make) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
