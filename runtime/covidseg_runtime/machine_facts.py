"""What a machine is, and what is installed on it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)")
_CUDA_EXTRAS = ("cuda", "cudnn")  # what `covidseg[gpu]` asks of ONNX Runtime
_SHARED = "numpy"  # every engine requires it, and so does the runtime


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads that this process may use, GPUs, system and Python."""
    cpuinfo = _read_text("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    cores = set(re.findall(r"^physical id\s*:\s*(\d+)$.*?^core id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE | re.DOTALL))
    gpus = [_read_text(str(path)) for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(cores) or None,
        "threads": os.cpu_count() if affinity is None else len(affinity(0)),
        "gpus": [name for gpu in gpus for name in re.findall(r"^Model:\s*(.+)$", gpu, re.MULTILINE)],
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def installed_size_mb(packages: Iterable[str]) -> float | None:
    """Installed size in MB (10^6 bytes) of Python packages and all that they require, without numpy.

    None if no distribution is known to hold them.
    """
    files: set[Path] = set()
    for distribution in _with_requirements(distributions_of(packages)):
        files.update(Path(str(file.locate())) for file in distribution.files or ())
    return sum(path.stat().st_size for path in files if path.is_file()) / 1e6 if files else None


def distributions_of(packages: Iterable[str]) -> set[str]:
    """Names of the installed distributions that hold Python packages."""
    holders = metadata.packages_distributions()
    return {holder for package in packages for holder in holders.get(package, ())}


def _with_requirements(names: Iterable[str]) -> list[metadata.Distribution]:
    """Distributions and whatever they require that is installed, numpy excepted."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found or name == _SHARED:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # required on another system
            continue
        waiting += [required for line in found[name].requires or () if (required := _required_name(line))]
    return list(found.values())


def _required_name(requirement: str) -> str | None:
    """The name in a requirement; None if only an extra asks for it, CUDA's excepted."""
    extra, name = _EXTRA.search(requirement), _REQUIREMENT.match(requirement)
    return None if name is None or (extra and extra[1] not in _CUDA_EXTRAS) else name[0]


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
