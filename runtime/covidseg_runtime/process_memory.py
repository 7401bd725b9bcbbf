"""What a process has taken of the machine's memory."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path


def peak_memory_mib() -> float | None:
    """The most memory this process held so far, in MiB; None where the system does not tell (Windows)."""
    # Not getrusage where it can be helped: on Linux a child starts with the peak of the process that started it.
    try:
        match = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match:
        return int(match[1]) / 2**10
    try:
        resource = import_module("resource")
    except ImportError:
        return None
    peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
