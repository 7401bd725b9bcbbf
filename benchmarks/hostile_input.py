"""Does any hostile file break a reader, or any hostile bundle the loader and the engines?

    python benchmarks/hostile_input.py [--scans 10000] [--bundles 2000] [--series 2000]    # 0 keeps the earlier result

The inputs are those of tests/hostile, by their seeds, in child processes of which a crash, a hang or an excess of
memory is seen. The run fails with the seeds of whatever ended otherwise than it should.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from record import earlier_result, keep_result

# The generators live with the tests, which draw from the same ones.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from hostile.watched import EXCESS_MIB, SECONDS, Attempt, WatchedChild  # noqa: E402

_SECTIONS = {"scan": "scans", "bundle": "bundles", "series": "series"}
_ATTEMPTS_OF_A_CHILD = 500  # engines keep a little of every network; the next child starts without


def attempt_all(kind: str, count: int) -> list[Attempt]:
    """One attempt for each seed from 0 on."""
    attempts: list[Attempt] = []
    for start in range(0, count, _ATTEMPTS_OF_A_CHILD):
        with WatchedChild() as child:
            seeds = range(start, min(start + _ATTEMPTS_OF_A_CHILD, count))
            attempts += [child.attempt(f"{kind} {seed}") for seed in seeds]
    return attempts


def summarise(attempts: list[Attempt]) -> dict[str, Any]:
    """Ends and faults by number, and the slowest and the largest attempt."""
    slowest = max(attempts, key=lambda attempt: attempt.seconds)
    largest = max(attempts, key=lambda attempt: attempt.excess_mib)
    return {
        "inputs": len(attempts),
        "ends": dict(Counter(attempt.end for attempt in attempts).most_common()),
        "changes": dict(Counter(change for attempt in attempts for change in attempt.changes).most_common()),
        "slowest": {
            **_named(slowest),
            "seconds": round(slowest.seconds, 2),
            "cpu_seconds": round(slowest.cpu_seconds, 2),
        },
        "most_cpu_seconds": round(max(attempt.cpu_seconds for attempt in attempts), 2),
        "largest": {**_named(largest), "mib_above_base": round(largest.excess_mib, 1)},
        "faults": [
            {**_named(attempt), "fault": attempt.fault, "detail": attempt.detail} for attempt in faulty(attempts)
        ],
    }


def faulty(attempts: Iterable[Attempt]) -> list[Attempt]:
    """The attempts that ended otherwise than they should."""
    return [attempt for attempt in attempts if attempt.fault]


def _named(attempt: Attempt) -> dict[str, Any]:
    return {"what": attempt.what, "changes": list(attempt.changes)}


def main() -> None:
    """Make every attempt and keep the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--bundles", type=int, default=2_000)
    parser.add_argument("--series", type=int, default=2_000, help="DICOM series")
    arguments = parser.parse_args()
    started = time.perf_counter()
    counts = {"scan": arguments.scans, "bundle": arguments.bundles, "series": arguments.series}
    attempts = {kind: attempt_all(kind, count) for kind, count in counts.items() if count}
    limits = {"seconds": SECONDS, "mib_above_base": EXCESS_MIB}
    minutes = round((time.perf_counter() - started) / 60, 1)
    made = {_SECTIONS[kind]: summarise(found) for kind, found in attempts.items()}
    kept = earlier_result("hostile_input")  # of a kind that was left out
    sections = {name: made.get(name, kept.get(name)) for name in _SECTIONS.values()}
    keep_result("hostile_input", {"limits": limits, "minutes": minutes, **sections})
    if wrong := faulty(one for found in attempts.values() for one in found):
        raise SystemExit(f"{len(wrong)} attempts ended otherwise than they should: {[one.what for one in wrong]}")


if __name__ == "__main__":
    main()
