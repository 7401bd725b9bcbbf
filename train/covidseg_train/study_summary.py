"""The numbers of a study: averages, comparison with scratch, convergence.

Averages are made in two ways. *Over tests*, as the benchmark does: every test of a case in a fold counts once.
*Over cases*: the tests of a case are averaged first, so that cases that are tested more often weigh no more.
Distances can be infinite, so that they are put together by medians. Missing values are left out.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median, stdev

from covidseg_train.paired_tests import PairedComparison, compare_paired, correct_by_holm
from covidseg_train.study_config import StudyConfig
from covidseg_train.study_results import (
    ABSOLUTE_VOLUME_ERROR,
    MEASURES,
    SCRATCH,
    Arm,
    CaseResult,
    CurvePoint,
    group_of,
    list_arms,
    list_shots,
)

ALL_CASES = "all"
AVERAGED = (*MEASURES, ABSOLUTE_VOLUME_ERROR)
COMPARED = ("dsc", "nsd")
_BY_MEDIAN = "hausdorff95_mm"


@dataclass(frozen=True)
class Spread:
    """Numbers put together.

    Attributes:
        centre: Their mean; the median for distances. NaN if there are none.
        sd: Sample standard deviation; NaN for fewer than two numbers or infinite ones.
    """

    centre: float
    sd: float


@dataclass(frozen=True)
class CaseAverage:
    """One case over the folds of one arm and number of shots that tested it.

    Attributes:
        measures: By name, averaged over the tests.
        is_averaged: Whether the case enters the means of the study.
    """

    arm: Arm
    shots: int
    case: str
    tests: int
    measures: Mapping[str, float]
    is_averaged: bool


@dataclass(frozen=True)
class ArmSummary:
    """One arm with one number of shots on one group of cases.

    Attributes:
        group: Name of the group, or ``all``.
        folds: Finished folds.
        tests: Tested cases, over all folds.
        cases: Different cases.
        over_tests: By measure.
        over_cases: By measure.
        against_scratch: By measure of ``COMPARED``; empty where there is nothing to compare with.
    """

    arm: Arm
    shots: int
    group: str
    folds: int
    tests: int
    cases: int
    over_tests: Mapping[str, Spread]
    over_cases: Mapping[str, Spread]
    against_scratch: Mapping[str, PairedComparison]


@dataclass(frozen=True)
class Convergence:
    """When one training reached what scratch ended with in the same fold.

    Attributes:
        threshold_dsc: Validation DSC at the end of the fold's training from scratch.
        step: Steps at the first validation at or above it; infinite if there was none.
        seconds: Wall time until then.
        cpu_seconds: Processor time until then.
        share_of_scratch: ``cpu_seconds`` as a share of what scratch itself took to reach it.
    """

    arm: Arm
    shots: int
    fold: int
    threshold_dsc: float
    step: float
    seconds: float
    cpu_seconds: float
    share_of_scratch: float


def summarise(study: StudyConfig, results: Sequence[CaseResult]) -> tuple[ArmSummary, ...]:
    """Every arm with every number of shots, on all cases and group by group; cases not averaged are left out."""
    kept = [one for one in results if one.case not in study.target.not_averaged]
    return tuple(
        summary
        for shots in list_shots(study)
        for group in (ALL_CASES, *list_groups(study))
        for summary in _summarise_family(
            study, [one for one in kept if one.shots == shots and group in (ALL_CASES, one.group)], shots, group
        )
    )


def list_groups(study: StudyConfig) -> tuple[str, ...]:
    """The groups of the cases that are averaged; none where all are of one."""
    kept = (case for case in study.target.cases if case not in study.target.not_averaged)
    groups = tuple(dict.fromkeys(group_of(case) for case in kept))
    return groups if len(groups) > 1 else ()


def _summarise_family(
    study: StudyConfig, results: Sequence[CaseResult], shots: int, group: str
) -> Iterator[ArmSummary]:
    """The arms of one number of shots and group; p values are corrected among them."""
    by_arm = {arm: [one for one in results if one.arm == arm] for arm in list_arms(study)}
    compared = {measure: _compare_with_scratch(by_arm, measure) for measure in COMPARED}
    for arm, tests in by_arm.items():
        if not tests:
            continue
        cases = average_cases(tests, study)
        yield ArmSummary(
            arm=arm,
            shots=shots,
            group=group,
            folds=len({one.fold for one in tests}),
            tests=len(tests),
            cases=len(cases),
            over_tests={name: spread_of(name, (one.measures[name] for one in tests)) for name in AVERAGED},
            over_cases={name: spread_of(name, (one.measures[name] for one in cases)) for name in AVERAGED},
            against_scratch={name: compared[name][arm] for name in COMPARED if arm in compared[name]},
        )


def _compare_with_scratch(by_arm: Mapping[Arm, Sequence[CaseResult]], measure: str) -> dict[Arm, PairedComparison]:
    scratch = by_arm.get(SCRATCH, ())
    differences = {arm: paired_differences(tests, scratch, measure) for arm, tests in by_arm.items() if arm != SCRATCH}
    compared = {arm: compare_paired(list(by_case.values())) for arm, by_case in differences.items() if by_case}
    return dict(zip(compared, correct_by_holm(list(compared.values())), strict=True))


def paired_differences(first: Sequence[CaseResult], second: Sequence[CaseResult], measure: str) -> dict[str, float]:
    """``first - second`` by case: the mean over the folds in which both tested it and have the measure."""
    values = {(one.fold, one.case): one.measures[measure] for one in second}
    differences: dict[str, list[float]] = {}
    for one in sorted(first, key=lambda one: (one.case, one.fold)):
        difference = one.measures[measure] - values.get((one.fold, one.case), math.nan)
        if math.isfinite(difference):
            differences.setdefault(one.case, []).append(difference)
    return {case: fmean(of_case) for case, of_case in differences.items()}


def average_cases(results: Iterable[CaseResult], study: StudyConfig) -> tuple[CaseAverage, ...]:
    """Average every case over the folds that tested it, for each arm and number of shots."""

    def key(one: CaseResult) -> tuple[int, int, int]:
        return one.shots, arms.index(one.arm), study.target.cases.index(one.case)

    arms = list_arms(study)
    averages = []
    for (shots, arm, case), grouped in groupby(sorted(results, key=key), key):
        tests = list(grouped)
        measures = {name: spread_of(name, (one.measures[name] for one in tests)).centre for name in AVERAGED}
        name = study.target.cases[case]
        is_averaged = name not in study.target.not_averaged
        averages.append(CaseAverage(arms[arm], shots, name, len(tests), measures, is_averaged))
    return tuple(averages)


def spread_of(measure: str, values: Iterable[float]) -> Spread:
    """Put the values of a measure together; NaN are left out."""
    present = [value for value in values if not math.isnan(value)]
    if not present:
        return Spread(math.nan, math.nan)
    centre = median(present) if measure == _BY_MEDIAN else fmean(present)
    has_sd = len(present) > 1 and all(math.isfinite(value) for value in present)
    return Spread(centre, stdev(present) if has_sd else math.nan)


def measure_convergence(study: StudyConfig, points: Sequence[CurvePoint]) -> tuple[Convergence, ...]:
    """When each training reached the validation DSC that scratch ended with in the same fold, arm by arm."""
    curves: dict[tuple[Arm, int], list[CurvePoint]] = {}
    for point in sorted(points, key=lambda point: point.step):
        curves.setdefault((point.arm, point.fold), []).append(point)
    return tuple(
        reach_of(curves[arm, fold], curves[SCRATCH, fold])
        for shots in list_shots(study)
        for arm in list_arms(study)
        for fold in range(len(study.folds))
        if len(study.folds[fold].train) == shots and (arm, fold) in curves and (SCRATCH, fold) in curves
    )


def reach_of(curve: Sequence[CurvePoint], scratch: Sequence[CurvePoint]) -> Convergence:
    """When a curve reached the last value of another one; both are in the order of steps."""
    threshold = scratch[-1].dsc
    reached = next((point for point in curve if point.dsc >= threshold), None)
    by_scratch = next((point.cpu_seconds for point in scratch if point.dsc >= threshold), math.nan)
    cpu_seconds = reached.cpu_seconds if reached else math.inf
    return Convergence(
        arm=curve[0].arm,
        shots=curve[0].shots,
        fold=curve[0].fold,
        threshold_dsc=threshold,
        step=reached.step if reached else math.inf,
        seconds=reached.seconds if reached else math.inf,
        cpu_seconds=cpu_seconds,
        share_of_scratch=cpu_seconds / by_scratch if by_scratch > 0 else math.nan,
    )
