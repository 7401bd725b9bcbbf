"""A benchmark as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import covidseg_runtime
from covidseg_runtime.benchmark_rows import Benchmark, Contestant, Row, Workload
from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.engines import available_engines
from covidseg_runtime.machine_facts import describe_machine, distributions_of
from covidseg_runtime.report import NOTICE, plain_json

BENCHMARK_SCHEMA_VERSION = 1


def benchmark_report(
    benchmark: Benchmark, bundle: ModelBundle, workload: Workload, scan: Mapping[str, Any]
) -> dict[str, Any]:
    """The benchmark as JSON; what was not measured is null.

    Args:
        benchmark: What was measured.
        bundle: The model.
        workload: What each row did.
        scan: What `describe_scan` gave.
    """
    report = {
        "schema_version": BENCHMARK_SCHEMA_VERSION,
        "notice": NOTICE,
        "date": benchmark.date,
        "software": {"name": "covidseg", "version": covidseg_runtime.__version__},
        "machine": describe_machine(),
        "versions": _versions(benchmark),
        "model": {
            "name": bundle.name,
            "version": bundle.version,
            "files": {file.name: file.sha256 for file in bundle.files},
        },
        "scan": scan,
        "repeats": workload.repeats,
        "threads": workload.threads,
        "reference": None if benchmark.reference is None else _name_parts(benchmark.reference),
        "rows": [_row_json(row) for row in benchmark.rows],
    }
    return {key: plain_json(value) for key, value in report.items()}


def _row_json(row: Row) -> dict[str, Any]:
    measured = row.measurement
    return {
        **_name_parts(row.contestant),
        "problem": row.problem,
        "load_s": None if measured is None else round(measured.load_s, 3),
        "ms_per_tile": None if measured is None else round(measured.median_tile_ms, 2),
        "all_ms_per_tile": None if measured is None else [round(ms, 2) for ms in measured.tile_ms],
        "s_per_scan": None if measured is None else round(measured.median_scan_s, 3),
        "all_s_per_scan": None if measured is None else [round(seconds, 3) for seconds in measured.scan_s],
        "scans_per_hour": None if measured is None else round(measured.scans_per_hour, 1),
        "peak_memory_mib": _rounded(None if measured is None else measured.peak_memory_mib, 1),
        "dsc_reference": _rounded(row.dsc_reference, 6),
        "dsc_truth": _rounded(row.dsc_truth, 6),
        "installed_mb": _rounded(row.installed_mb, 1),
    }


def _versions(benchmark: Benchmark) -> dict[str, str]:
    """Versions of the engines that are installed and of the peers that were measured."""
    packages = {package for row, _ in benchmark.measured for package in row.contestant.packages}
    engines = {info.name: info.version for info in available_engines() if info.version is not None}
    return engines | {name: metadata.version(name) for name in sorted(distributions_of(packages))}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _name_parts(contestant: Contestant) -> dict[str, str]:
    return {"engine": contestant.engine, "precision": contestant.precision, "device": contestant.device}
