"""The numbers of a study as CSV files, in full digits; an empty field is a missing value."""

import math
from collections.abc import Sequence
from pathlib import Path

from covidseg_train.study import write_csv
from covidseg_train.study_results import group_of
from covidseg_train.study_summary import AVERAGED, COMPARED, ArmSummary, CaseAverage, Convergence

SUMMARY, CASES, CONVERGENCE = "summary.csv", "cases.csv", "convergence.csv"


def write_tables(
    folder: Path,
    summaries: Sequence[ArmSummary],
    averages: Sequence[CaseAverage],
    convergence: Sequence[Convergence],
) -> list[Path]:
    """Write a line an arm and group, a line an arm and case, and a line a training."""
    tables = {
        SUMMARY: [_summary_row(one) for one in summaries],
        CASES: [_case_row(one) for one in averages],
        CONVERGENCE: [_convergence_row(one) for one in convergence],
    }
    for name, rows in tables.items():
        write_csv(folder / name, [{key: _without_nan(value) for key, value in row.items()} for row in rows])
    return [folder / name for name in tables]


def _summary_row(one: ArmSummary) -> dict[str, object]:
    row: dict[str, object] = {
        "shots": one.shots,
        "group": one.group,
        "source": one.arm.source,
        "strategy": one.arm.strategy,
        "folds": one.folds,
        "tests": one.tests,
        "cases": one.cases,
    }
    for name in AVERAGED:
        row[f"{name}_over_tests"], row[f"{name}_sd_over_tests"] = one.over_tests[name].centre, one.over_tests[name].sd
        row[f"{name}_over_cases"], row[f"{name}_sd_over_cases"] = one.over_cases[name].centre, one.over_cases[name].sd
    for name in COMPARED:
        found = one.against_scratch.get(name)
        for part in ("cases", "difference", "lower", "upper", "p", "p_holm"):
            row[f"{name}_against_scratch_{part}"] = getattr(found, part) if found else None
    return row


def _case_row(one: CaseAverage) -> dict[str, object]:
    return {
        "shots": one.shots,
        "source": one.arm.source,
        "strategy": one.arm.strategy,
        "case": one.case,
        "group": group_of(one.case),
        "averaged": "yes" if one.is_averaged else "no",
        "tests": one.tests,
        **one.measures,
    }


def _convergence_row(one: Convergence) -> dict[str, object]:
    return {
        "shots": one.shots,
        "source": one.arm.source,
        "strategy": one.arm.strategy,
        "fold": one.fold,
        "threshold_dsc": one.threshold_dsc,
        "step": one.step,
        "seconds": one.seconds,
        "cpu_seconds": one.cpu_seconds,
        "share_of_scratch": one.share_of_scratch,
    }


def _without_nan(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value
