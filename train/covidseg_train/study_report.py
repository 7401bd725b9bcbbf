"""What a study leaves at its end: ``study.md`` with its plots, and the numbers behind them as CSV."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from covidseg_train.datasets.catalog import get_dataset
from covidseg_train.paired_tests import CONFIDENCE, RESAMPLES, PairedComparison
from covidseg_train.published_results import CITATION, PUBLISHED_ROWS
from covidseg_train.study import list_cells
from covidseg_train.study_config import StudyConfig
from covidseg_train.study_results import (
    ABSOLUTE_VOLUME_ERROR,
    SCRATCH,
    Arm,
    CaseResult,
    Cost,
    CurvePoint,
    count_cases,
    list_arms,
    list_shots,
    read_curves,
    read_pretraining_costs,
    read_results,
    source_label,
)
from covidseg_train.study_summary import (
    ALL_CASES,
    ArmSummary,
    CaseAverage,
    Convergence,
    average_cases,
    list_groups,
    measure_convergence,
    summarise,
)
from covidseg_train.study_tables import write_tables

REPORT = "study.md"
DSC_PLOT, CONVERGENCE_PLOT, FOLDS_PLOT = "dsc.png", "convergence.png", "folds.png"
_ABSENT = "–"


@dataclass(frozen=True)
class StudyNumbers:
    """Everything the report is written from."""

    study: StudyConfig
    results: tuple[CaseResult, ...]
    curves: tuple[CurvePoint, ...]
    averages: tuple[CaseAverage, ...]
    summaries: tuple[ArmSummary, ...]
    convergence: tuple[Convergence, ...]
    pretraining: Mapping[str, Cost]


def write_study_report(study: StudyConfig, folder: Path) -> list[Path]:
    """Write tables and plots of the cells that are finished.

    Args:
        study: The study.
        folder: Its folder, with ``results.csv`` and ``curves.csv``.

    Returns:
        The files written; plots of nothing are not.

    Raises:
        SettingsError: If the folder holds no results, or those of another study.
    """
    numbers = compute_numbers(study, folder)
    plots = write_plots(numbers, folder)
    report = folder / REPORT
    report.write_text("\n\n".join(describe_study(numbers, [path.name for path in plots])) + "\n", encoding="utf-8")
    tables = write_tables(folder, numbers.summaries, numbers.averages, numbers.convergence)
    return [report, *tables, *plots]


def compute_numbers(study: StudyConfig, folder: Path) -> StudyNumbers:
    """Read a study's folder and compute what the report says."""
    results, curves = read_results(study, folder), read_curves(folder)
    return StudyNumbers(
        study=study,
        results=results,
        curves=curves,
        averages=average_cases(results, study),
        summaries=summarise(study, results),
        convergence=measure_convergence(study, curves),
        pretraining=read_pretraining_costs(study, folder),
    )


def write_plots(numbers: StudyNumbers, folder: Path) -> list[Path]:
    """Draw what there are numbers for."""
    from covidseg_train.study_plots import draw_convergence, draw_dsc, draw_fold_boxes, save_figure

    study, written = numbers.study, []
    averaged = [one for one in numbers.results if one.case not in study.target.not_averaged]
    if averaged:
        written.append(save_figure(draw_dsc(study, numbers.averages), folder / DSC_PLOT))
    if numbers.curves:
        written.append(save_figure(draw_convergence(study, numbers.curves), folder / CONVERGENCE_PLOT))
    if averaged:
        written.append(save_figure(draw_fold_boxes(study, averaged), folder / FOLDS_PLOT))
    return written


def describe_study(numbers: StudyNumbers, plots: Sequence[str]) -> Iterator[str]:
    """The paragraphs, tables and plots of ``study.md`` in order."""
    study = numbers.study
    yield f"# Study {study.name}"
    yield _how_far(numbers)
    yield _facts(numbers)
    yield "## How the numbers are made"
    yield _method(study)
    for shots in list_shots(study):
        yield f"## Trained on {count_cases(shots)}"
        yield from _results_of_shots(numbers, shots)
    if DSC_PLOT in plots:
        yield f"![DSC of every case by source and strategy]({DSC_PLOT})"
        yield f"![DSC fold by fold]({FOLDS_PLOT})"
    yield from _left_out(numbers)
    yield "## Training time and convergence"
    yield from _convergence(numbers)
    if CONVERGENCE_PLOT in plots:
        yield f"![Validation DSC over training time]({CONVERGENCE_PLOT})"
    yield "## Beside the published benchmark"
    yield from _beside_published(numbers)


def _how_far(numbers: StudyNumbers) -> str:
    done, planned = len({(one.arm, one.fold) for one in numbers.results}), len(list_cells(numbers.study))
    text = f"{done} of {planned} cells finished."
    if done == planned:
        return text
    return (
        f"{text} Averages are of the finished ones: where two arms have other folds, compare them by Δ, which is of "
        "the folds that both have, not by their means."
    )


def _method(study: StudyConfig) -> str:
    dataset = get_dataset(study.target.dataset)
    left_out = ", ".join(study.target.not_averaged)
    return (
        f"Target: {dataset.title}, {len(study.target.cases)} cases; every network is tested on the cases it was not "
        "trained on, on the scans' own grid, at its last step.\n"
        + (f"Shown but left out of every mean and test: {left_out}.\n" if left_out else "")
        + "Two numbers in a field are *over tests / over cases*: over tests is the benchmark's way, every test of a "
        "case in a fold counts once (n = folds × tests); over cases, the tests of a case are averaged first "
        "(n = cases). HD95 is put together by medians, for it is infinite where nothing was found; all else by "
        "means. NSD has a tolerance of 3 mm. A measure that is not defined, both masks being empty, is left out.\n"
        f"Δ DSC is the mean over cases of the difference to scratch in the same folds, with its "
        f"{100 * CONFIDENCE:.0f} % BCa bootstrap interval ({RESAMPLES} draws of cases); p is of the two-sided Wilcoxon "
        "signed-rank test over cases (n cases that all agree have 2 / 2ⁿ, the smallest there is), p (Holm) corrected "
        "for all arms with the same number of shots. Of groups of cases p is not corrected, for they are too small. "
        "Interval and test speak of the choice of cases, not of another seed: each cell is one training."
    )


def _facts(numbers: StudyNumbers) -> str:
    facts = [_facts_of_shots(numbers, shots) for shots in list_shots(numbers.study)]
    return " ".join(fact for fact in facts if fact) or "No arm can be compared with scratch yet."


def _facts_of_shots(numbers: StudyNumbers, shots: int) -> str:
    compared = [
        (one.arm, one.against_scratch["dsc"])
        for one in _of_shots(numbers, shots, ALL_CASES)
        if "dsc" in one.against_scratch
    ]
    if not compared:
        return ""
    above = [found for _, found in compared if found.difference > 0]
    below = [found for _, found in compared if found.difference < 0]
    best_arm, best = max(compared, key=lambda pair: pair[1].difference)
    worst_arm, worst = min(compared, key=lambda pair: pair[1].difference)
    return (
        f"Trained on {count_cases(shots)}: a higher mean DSC than scratch in {len(above)} of {len(compared)} arms "
        f"({_count(above)}), a lower one in {len(below)} ({_count(below)}). "
        f"Largest difference: {_name(numbers.study, best_arm)}, {_difference(best)}; "
        f"smallest: {_name(numbers.study, worst_arm)}, {_difference(worst)}."
    )


def _count(found: Sequence[PairedComparison]) -> str:
    excluding, significant = sum(one.excludes_zero for one in found), sum(one.p_holm < 0.05 for one in found)
    return f"{excluding} with an interval that excludes zero, {significant} with p (Holm) < 0.05"


def _results_of_shots(numbers: StudyNumbers, shots: int) -> Iterator[str]:
    summaries = _of_shots(numbers, shots, ALL_CASES)
    if not summaries:
        yield "No cell is finished."
        return
    yield _table(
        (
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
        ),
        (_main_row(numbers.study, one) for one in summaries),
    )
    groups = list_groups(numbers.study)
    if groups:
        header = ("source", "strategy", *(f"{group.capitalize()}: {part}" for group in groups for part in _GROUP_PARTS))
        yield _table(header, (_group_row(numbers, one, groups) for one in summaries))


_GROUP_PARTS = ("DSC", "NSD", "Δ DSC [95 % CI]", "p")


def _main_row(study: StudyConfig, one: ArmSummary) -> tuple[str, ...]:
    found = one.against_scratch.get("dsc")
    folds = sum(len(fold.train) == one.shots for fold in study.folds)
    return (
        *_arm_fields(study, one.arm),
        f"{one.folds} of {folds}",
        f"{one.tests} / {one.cases}",
        _both(one, "dsc"),
        _difference(found),
        _p(found.p if found else math.nan),
        _p(found.p_holm if found else math.nan),
        _both(one, "nsd"),
        _both(one, "hausdorff95_mm", ".1f"),
        _both(one, "sensitivity"),
        _both(one, "precision"),
        _both(one, "volume_error_ml", "+z.0f"),
        _both(one, ABSOLUTE_VOLUME_ERROR, ".0f"),
    )


def _group_row(numbers: StudyNumbers, one: ArmSummary, groups: Sequence[str]) -> tuple[str, ...]:
    fields = [*_arm_fields(numbers.study, one.arm)]
    for group in groups:
        of_group = next((other for other in _of_shots(numbers, one.shots, group) if other.arm == one.arm), None)
        found = of_group.against_scratch.get("dsc") if of_group else None
        fields += [
            _both(of_group, "dsc"),
            _both(of_group, "nsd"),
            _difference(found),
            _p(found.p if found else math.nan),
        ]
    return tuple(fields)


def _left_out(numbers: StudyNumbers) -> Iterator[str]:
    left_out = [one for one in numbers.averages if not one.is_averaged]
    rows = []
    for case, shots in dict.fromkeys((one.case, one.shots) for one in left_out):
        same = [one for one in left_out if one.case == case and one.shots == shots]
        scratch = [one.measures["dsc"] for one in same if one.arm == SCRATCH]
        others = sorted(dsc for one in same if one.arm != SCRATCH and not math.isnan(dsc := one.measures["dsc"]))
        span = f"{others[0]:.3f} to {others[-1]:.3f}" if others else _ABSENT
        rows.append((case, str(shots), _number(scratch[0] if scratch else math.nan), span))
    if rows:
        yield "Cases left out of every mean:"
        yield _table(("case", "shots", "DSC, scratch", "DSC, other arms"), rows)


def _convergence(numbers: StudyNumbers) -> Iterator[str]:
    study = numbers.study
    yield (
        "Reached: the first validation at or above the DSC that scratch ended with in the same fold, on the fold's "
        "curve cases. Times and steps are medians over the trainings (sources × folds), infinite where it was not "
        "reached. Processor time is the clock to compare by on a CPU: wall time depends on what else ran. "
        "Pre-training and validation are not counted."
    )
    yield _table(
        (
            "shots",
            "strategy",
            "trainings",
            "CPU s, whole training",
            "wall s, whole training",
            "reached",
            "steps until reached",
            "CPU s until reached",
            "share of scratch's CPU s",
        ),
        _convergence_rows(numbers),
    )
    costs = numbers.pretraining
    if costs:
        yield "Pre-training, once for all folds and strategies of a source:"
        yield _table(
            ("source", "steps", "CPU s", "wall s"),
            (
                (source_label(study, name), f"{one.steps}", f"{one.cpu_seconds:.0f}", f"{one.seconds:.0f}")
                for name, one in costs.items()
            ),
        )


def _convergence_rows(numbers: StudyNumbers) -> Iterator[tuple[str, ...]]:
    strategies = dict.fromkeys(arm.strategy for arm in list_arms(numbers.study))
    for shots in list_shots(numbers.study):
        for strategy in strategies:
            trainings = {
                (one.arm, one.fold): one
                for one in numbers.results
                if one.shots == shots and one.arm.strategy == strategy
            }
            times = [one for one in numbers.convergence if one.shots == shots and one.arm.strategy == strategy]
            if not trainings:
                continue
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


def _beside_published(numbers: StudyNumbers) -> Iterator[str]:
    study = numbers.study
    own = [one for one in numbers.summaries if one.group == ALL_CASES and one.arm.strategy in ("scratch", "joint")]
    rows = [
        (
            f"**this study**, {one.arm.strategy}",
            "target" if one.arm == SCRATCH else f"{source_label(study, one.arm.source)} and target",
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
    yield _table(
        ("setting", "trained on", "COVID-19 scans", "DSC, mean ± SD over tests", "NSD, mean ± SD over tests"), rows
    )
    yield f"Scratch and joint are the arms that the benchmark has too (Tasks 1 and 3). Published rows: {CITATION}."
    yield _why_not_comparable(study)


def _why_not_comparable(study: StudyConfig) -> str:
    dataset = get_dataset(study.target.dataset)
    spacing = " × ".join(f"{mm:g}" for mm in study.grid.spacing_mm)
    limits = f" The data: {dataset.limits}" if dataset.limits else ""
    return (
        "The rows are not comparable to the point. The published ones are of the 20 original scans in 5 folds (4 or 16 "
        "for training, the others for testing), by nnU-Net's 3D U-Net of widths 32 to 320. "
        f"This study has {len(study.target.cases)} cases in {len(study.folds)} folds of its own, a grid of "
        f"{spacing} mm and a network of widths {study.network.widths[0]} to {study.network.widths[-1]} trained for "
        f"{study.fine_tuning.steps} steps.{limits}"
    )


def _of_shots(numbers: StudyNumbers, shots: int, group: str) -> list[ArmSummary]:
    return [one for one in numbers.summaries if one.shots == shots and one.group == group]


def _arm_fields(study: StudyConfig, arm: Arm) -> tuple[str, str]:
    return (_ABSENT if arm == SCRATCH else source_label(study, arm.source)), arm.strategy


def _name(study: StudyConfig, arm: Arm) -> str:
    preposition = "with" if arm.strategy == "joint" else "from"
    return f"{arm.strategy} {preposition} {source_label(study, arm.source)}"


def _both(one: ArmSummary | None, measure: str, form: str = ".3f") -> str:
    if one is None:
        return _ABSENT
    return f"{_number(one.over_tests[measure].centre, form)} / {_number(one.over_cases[measure].centre, form)}"


def _difference(found: PairedComparison | None) -> str:
    if found is None:
        return _ABSENT
    return f"{found.difference:+z.3f} [{_number(found.lower, '+z.3f')}, {_number(found.upper, '+z.3f')}]"


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
