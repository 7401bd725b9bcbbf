"""Ctrl-C and SIGTERM: what a command does about them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that unfinished files are removed, while the block runs."""
    with _handled((signal.SIGTERM,), signal.default_int_handler):
        yield


@contextmanager
def cancel_on_signals() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C and SIGTERM set while the block runs; a second one interrupts at once."""
    cancel = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    with _handled((signal.SIGINT, signal.SIGTERM), ask):
        yield cancel


@contextmanager
def _handled(numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Only the main thread can set handlers; elsewhere nothing is caught."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
