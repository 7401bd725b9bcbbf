"""Keeping engines from reporting to their makers.

Left alone, `import openvino` (2026.4) reports to Google Analytics and writes `~/intel`, and `import onnxruntime` (since
1.29, Linux too) opens an uploader to Microsoft and writes `~/.cache/Microsoft`; neither asks. A machine with
patients' data must not do that on our behalf. Both decide while they are imported, so both are imported in here, and
nothing of the host's environment is different afterwards. An engine that the host imported before us, or an
`ORT_DISABLE_TELEMETRY` that it set, is its own choice and stays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

__all__ = ["import_without_telemetry"]


def import_without_telemetry(engine: str) -> ModuleType:
    """Import "openvino" or "onnxruntime".

    Raises:
        ImportError: if it is not installed.
    """
    with _module_out_of_reach("openvino_telemetry"), _environment_variable("ORT_DISABLE_TELEMETRY", "1"):
        return import_module(engine)


@contextmanager
def _module_out_of_reach(name: str) -> Iterator[None]:
    """Let imports of a module fail meanwhile; openvino then takes its own stub."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    """Set a variable meanwhile, unless it is set already; onnxruntime reads it once for the life of the process."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
