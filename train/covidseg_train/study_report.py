"""What a study leaves at its end: ``study.md`` with its plots, and the numbers behind them as CSV."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from covidseg_train.datasets.catalog import get_dataset
from covidseg_train.paired_tests import CONFIDENCE, RESAMPLES, PairedComparison
from covidseg_train.published_results import CITATION
from covidseg_train.study import list_cells
from covidseg_train.study_config import StudyConfig
from covidseg_train.study_markdown_tables import (
    arm_table,
    convergence_table,
    format_difference,
    group_table,
    left_out_table,
    pretraining_table,
    published_table,
)
from covidseg_train.study_numbers import StudyNumbers, compute_numbers
from covidseg_train.study_results import Arm, count_cases, list_shots, source_label
from covidseg_train.study_summary import ALL_CASES, list_groups
from covidseg_train.study_tables import write_tables

REPORT = "study.md"
DSC_PLOT, CONVERGENCE_PLOT, FOLDS_PLOT = "dsc.png", "convergence.png", "folds.png"


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
    if any(not one.is_averaged for one in numbers.averages):
        yield "Cases left out of every mean:"
        yield left_out_table(numbers)
    yield "## Training time and convergence"
    yield from _convergence(numbers)
    if CONVERGENCE_PLOT in plots:
        yield f"![Validation DSC over training time]({CONVERGENCE_PLOT})"
    yield "## Beside the published benchmark"
    yield published_table(numbers)
    yield f"Scratch and joint are the arms that the benchmark has too (Tasks 1 and 3). Published rows: {CITATION}."
    yield _why_not_comparable(study)


def _how_far(numbers: StudyNumbers) -> str:
    done, planned = len({(one.arm, one.fold) for one in numbers.results}), len(list_cells(numbers.study))
    text = f"{done} of {planned} cells finished."
    if done == planned:
        return text
    return (
        f"{text} Averages are of the finished ones: where two arms have other folds, compare them by Δ, which is of "
        "the folds that both have, not by their means."
    )


def _facts(numbers: StudyNumbers) -> str:
    facts = [_facts_of_shots(numbers, shots) for shots in list_shots(numbers.study)]
    return " ".join(fact for fact in facts if fact) or "No arm can be compared with scratch yet."


def _facts_of_shots(numbers: StudyNumbers, shots: int) -> str:
    compared = [
        (one.arm, one.against_scratch["dsc"])
        for one in numbers.summaries_of(shots, ALL_CASES)
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
        f"({_significance(above)}), a lower one in {len(below)} ({_significance(below)}). "
        f"Largest difference: {_name_arm(numbers.study, best_arm)}, {format_difference(best)}; "
        f"smallest: {_name_arm(numbers.study, worst_arm)}, {format_difference(worst)}."
    )


def _significance(found: Sequence[PairedComparison]) -> str:
    excluding, significant = sum(one.excludes_zero for one in found), sum(one.p_holm < 0.05 for one in found)
    return f"{excluding} with an interval that excludes zero, {significant} with p (Holm) < 0.05"


def _name_arm(study: StudyConfig, arm: Arm) -> str:
    preposition = "with" if arm.strategy == "joint" else "from"
    return f"{arm.strategy} {preposition} {source_label(study, arm.source)}"


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


def _results_of_shots(numbers: StudyNumbers, shots: int) -> Iterator[str]:
    if not numbers.summaries_of(shots, ALL_CASES):
        yield "No cell is finished."
        return
    yield arm_table(numbers, shots)
    groups = list_groups(numbers.study)
    if groups:
        yield group_table(numbers, shots, groups)


def _convergence(numbers: StudyNumbers) -> Iterator[str]:
    yield (
        "Reached: the first validation at or above the DSC that scratch ended with in the same fold, on the fold's "
        "curve cases. Times and steps are medians over the trainings (sources × folds), infinite where it was not "
        "reached. Processor time is the clock to compare by on a CPU: wall time depends on what else ran. "
        "Pre-training and validation are not counted."
    )
    yield convergence_table(numbers)
    if numbers.pretraining:
        yield "Pre-training, once for all folds and strategies of a source:"
        yield pretraining_table(numbers)


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
