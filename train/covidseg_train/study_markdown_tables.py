"""The tables of a study's report, in Markdown."""

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, median

from covidseg_train.paired_tests import PairedComparison
from covidseg_train.published_results import PUBLISHED_ROWS
from covidseg_train.study_config import StudyConfig
from covidseg_train.study_numbers import StudyNumbers
from covidseg_train.study_results import ABSOLUTE_VOLUME_ERROR, SCRATCH, Arm, list_arms, list_shots, source_label
from covidseg_train.study_summary import ALL_CASES, ArmSummary

_ABSENT = "–"
_GROUP_PARTS = ("DSC", "NSD", "Δ DSC [95 % CI]", "p")


def arm_table(numbers: StudyNumbers, shots: int) -> str:
    """A line an arm, on all cases."""
    header = (
        "source",
        "strategy",
        "folds",
        "n",
        "DSC",
        "Δ DSC [95 % CI]",
        "p",
        "p (Holm)",
        "NSD",
        "HD95, mm",
        "sensitivity",
        "precision",
        "volume error, mL",
        "absolute, mL",
    )
    return _table(header, (_arm_row(numbers.study, one) for one in numbers.summaries_of(shots, ALL_CASES)))


def _arm_row(study: StudyConfig, one: ArmSummary) -> tuple[str, ...]:
    found = one.against_scratch.get("dsc")
    folds = sum(len(fold.train) == one.shots for fold in study.folds)
    return (
        *_arm_fields(study, one.arm),
        f"{one.folds} of {folds}",
        f"{one.tests} / {one.cases}",
        _two_averages(one, "dsc"),
        format_difference(found),
        _p(found.p if found else math.nan),
        _p(found.p_holm if found else math.nan),
        _two_averages(one, "nsd"),
        _two_averages(one, "hausdorff95_mm", ".1f"),
        _two_averages(one, "sensitivity"),
        _two_averages(one, "precision"),
        _two_averages(one, "volume_error_ml", "+z.0f"),
        _two_averages(one, ABSOLUTE_VOLUME_ERROR, ".0f"),
    )


def group_table(numbers: StudyNumbers, shots: int, groups: Sequence[str]) -> str:
    """A line an arm, with the groups of cases side by side."""
    header = ("source", "strategy", *(f"{group.capitalize()}: {part}" for group in groups for part in _GROUP_PARTS))
    return _table(header, (_group_row(numbers, one, groups) for one in numbers.summaries_of(shots, ALL_CASES)))


def _group_row(numbers: StudyNumbers, one: ArmSummary, groups: Sequence[str]) -> tuple[str, ...]:
    fields = [*_arm_fields(numbers.study, one.arm)]
    for group in groups:
        of_group = next((other for other in numbers.summaries_of(one.shots, group) if other.arm == one.arm), None)
        found = of_group.against_scratch.get("dsc") if of_group else None
        fields += [
            _two_averages(of_group, "dsc"),
            _two_averages(of_group, "nsd"),
            format_difference(found),
            _p(found.p if found else math.nan),
        ]
    return tuple(fields)


def left_out_table(numbers: StudyNumbers) -> str:
    """A line a case that enters no mean and number of shots."""
    left_out = [one for one in numbers.averages if not one.is_averaged]
    rows = []
    for case, shots in dict.fromkeys((one.case, one.shots) for one in left_out):
        same = [one for one in left_out if one.case == case and one.shots == shots]
        scratch = [one.measures["dsc"] for one in same if one.arm == SCRATCH]
        others = sorted(dsc for one in same if one.arm != SCRATCH and not math.isnan(dsc := one.measures["dsc"]))
        span = f"{others[0]:.3f} to {others[-1]:.3f}" if others else _ABSENT
        rows.append((case, str(shots), _number(scratch[0] if scratch else math.nan), span))
    return _table(("case", "shots", "DSC, scratch", "DSC, other arms"), rows)


def convergence_table(numbers: StudyNumbers) -> str:
    """A line a number of shots and strategy: what a training costs, and when it reached what scratch ended with."""
    header = (
        "shots",
        "strategy",
        "trainings",
        "CPU s, whole training",
        "wall s, whole training",
        "reached",
        "steps until reached",
        "CPU s until reached",
        "share of scratch's CPU s",
    )
    return _table(header, _convergence_rows(numbers))


def _convergence_rows(numbers: StudyNumbers) -> Iterator[tuple[str, ...]]:
    strategies = dict.fromkeys(arm.strategy for arm in list_arms(numbers.study))
    for shots in list_shots(numbers.study):
        for strategy in strategies:
            trainings = {
                (one.arm, one.fold): one
                for one in numbers.results
                if one.shots == shots and one.arm.strategy == strategy
            }
            if not trainings:
                continue
            times = [one for one in numbers.convergence if one.shots == shots and one.arm.strategy == strategy]
            yield (
                str(shots),
                strategy,
                str(len(trainings)),
                f"{fmean(one.cpu_seconds for one in trainings.values()):.0f}",
                f"{fmean(one.seconds for one in trainings.values()):.0f}",
                f"{sum(math.isfinite(one.step) for one in times)} of {len(times)}",
                _median(one.step for one in times),
                _median(one.cpu_seconds for one in times),
                _median((one.share_of_scratch for one in times), ".2f"),
            )


def pretraining_table(numbers: StudyNumbers) -> str:
    """A line a source: what its pre-training costs."""
    rows = (
        (source_label(numbers.study, name), f"{one.steps}", f"{one.cpu_seconds:.0f}", f"{one.seconds:.0f}")
        for name, one in numbers.pretraining.items()
    )
    return _table(("source", "steps", "CPU s", "wall s"), rows)


def published_table(numbers: StudyNumbers) -> str:
    """Scratch and joint of this study above the rows of the benchmark."""
    own = [one for one in numbers.summaries if one.group == ALL_CASES and one.arm.strategy in ("scratch", "joint")]
    rows = [
        (
            f"**this study**, {one.arm.strategy}",
            "target" if one.arm == SCRATCH else f"{source_label(numbers.study, one.arm.source)} and target",
            str(one.shots),
            _mean_sd(one.over_tests["dsc"].centre, one.over_tests["dsc"].sd),
            _mean_sd(one.over_tests["nsd"].centre, one.over_tests["nsd"].sd),
        )
        for one in own
    ]
    rows += [
        (row.setting, row.trained_on, str(row.shots), _mean_sd(row.dsc, row.dsc_sd), _mean_sd(row.nsd, row.nsd_sd))
        for row in PUBLISHED_ROWS
    ]
    header = ("setting", "trained on", "COVID-19 scans", "DSC, mean ± SD over tests", "NSD, mean ± SD over tests")
    return _table(header, rows)


def format_difference(found: PairedComparison | None) -> str:
    """A mean difference with its interval; a dash where nothing was compared."""
    if found is None:
        return _ABSENT
    return f"{found.difference:+z.3f} [{_number(found.lower, '+z.3f')}, {_number(found.upper, '+z.3f')}]"


def _arm_fields(study: StudyConfig, arm: Arm) -> tuple[str, str]:
    return (_ABSENT if arm == SCRATCH else source_label(study, arm.source)), arm.strategy


def _two_averages(one: ArmSummary | None, measure: str, form: str = ".3f") -> str:
    if one is None:
        return _ABSENT
    return f"{_number(one.over_tests[measure].centre, form)} / {_number(one.over_cases[measure].centre, form)}"


def _mean_sd(mean: float, sd: float) -> str:
    return f"{_number(mean)} ± {_number(sd)}"


def _median(values: Iterable[float], form: str = ".0f") -> str:
    present = [value for value in values if not math.isnan(value)]
    return _number(median(present), form) if present else _ABSENT


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else _number(value)


def _number(value: float, form: str = ".3f") -> str:
    if math.isnan(value):
        return _ABSENT
    return format(value, form) if math.isfinite(value) else "infinite"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
