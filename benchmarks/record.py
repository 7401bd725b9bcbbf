"""Keeping a result: what was measured, where and when, as JSON in benchmarks/results."""

import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def keep_result(name: str, result: Mapping[str, Any]) -> Path:
    """Write ``results/<name>.json`` with the machine, the versions and the date, and print it."""
    record = {
        "benchmark": name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0)), "system": platform.system()},
        "versions": {"covidseg": version("covidseg"), "python": platform.python_version()},
        **result,
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    json.dump(record, sys.stdout, indent=2)
    print()
    return path


def earlier_result(name: str) -> dict[str, Any]:
    """What was kept last; empty if nothing was."""
    path = RESULTS / f"{name}.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return kept


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
