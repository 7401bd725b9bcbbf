"""The plots of a study: DSC per strategy with its cases, DSC over training time, and boxes per fold."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from covidseg_train.study_config import StudyConfig
from covidseg_train.study_results import (
    SCRATCH,
    Arm,
    CaseResult,
    CurvePoint,
    count_cases,
    group_of,
    list_arms,
    list_shots,
    source_label,
)
from covidseg_train.study_summary import CaseAverage

# Okabe and Ito's palette, which colour-blind readers tell apart; scratch is black in every plot.
COLOURS = {
    "scratch": "#000000",
    "joint": "#CC79A7",
    "continual": "#E69F00",
    "body": "#56B4E9",
    "encoder": "#009E73",
    "hybrid": "#D55E00",
}
_LINE_MARKERS = {"scratch": "o", "joint": "P", "continual": "s", "body": "^", "encoder": "v", "hybrid": "D"}
_GROUP_MARKERS = ("o", "^", "s", "D")
_NOT_AVERAGED_MARKER = "x"
_DOTS_PER_INCH = 150
_SOURCE_GAP = 0.9  # between two sources, in widths of an arm


@dataclass(frozen=True)
class Column:
    """Where an arm stands on the x axis."""

    arm: Arm
    x: float


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    return path


def draw_dsc(study: StudyConfig, averages: Sequence[CaseAverage]) -> Figure:
    """Every case's DSC by source and strategy, a panel for each number of shots."""
    shots_drawn = [shots for shots in list_shots(study) if any(one.shots == shots for one in averages)]
    columns = place_arms(study)
    figure = Figure(figsize=(max(7.0, 0.42 * columns[-1].x + 3.5), 3.7 * len(shots_drawn) + 1.0), layout="constrained")
    panels = figure.subplots(len(shots_drawn), squeeze=False, sharex=True)[:, 0]
    for panel, shots in zip(panels, shots_drawn, strict=True):
        _draw_arms(panel, study, columns, [one for one in averages if one.shots == shots])
        panel.set_title(f"trained on {count_cases(shots)}", loc="left", fontsize=10)
        _name_sources(panel, study, columns)
    figure.suptitle("DSC of every test case, averaged over the folds that tested it")
    _add_legend(figure, [Patch(color=COLOURS[name], label=name) for name in _strategies(study)])
    figure.legend(handles=_symbols(study, averages), loc="outside right center", frameon=False, fontsize=9)
    return figure


def place_arms(study: StudyConfig) -> tuple[Column, ...]:
    """Scratch first, then source by source with a gap before each."""
    by_source: dict[str, list[Arm]] = {SCRATCH.source: []}
    for source in study.sources:
        by_source[source.name] = []
    for arm in list_arms(study):
        by_source[arm.source].append(arm)
    columns: list[Column] = []
    x = 0.0
    for arms in by_source.values():
        columns += [Column(arm, x + index) for index, arm in enumerate(arms)]
        x += len(arms) + _SOURCE_GAP if arms else 0.0
    return tuple(columns)


def _draw_arms(panel: Axes, study: StudyConfig, columns: Sequence[Column], averages: Sequence[CaseAverage]) -> None:
    markers = _markers_of_groups(study)
    for column in columns:
        cases = [one for one in averages if one.arm == column.arm]
        for index, one in enumerate(cases):
            is_cross = not one.is_averaged
            panel.plot(
                column.x + 0.5 * (index + 0.5) / len(cases) - 0.25,
                one.measures["dsc"],
                marker=_NOT_AVERAGED_MARKER if is_cross else markers[group_of(one.case)],
                color=COLOURS[column.arm.strategy],
                markersize=4.5,
                markeredgewidth=1.0 if is_cross else 0.0,
                alpha=0.75,
                linestyle="none",
            )
        mean = _mean_dsc(cases)
        if mean is not None:
            panel.hlines(mean, column.x - 0.42, column.x + 0.42, color=COLOURS[column.arm.strategy], linewidth=2.5)
    scratch = _mean_dsc([one for one in averages if one.arm == SCRATCH])
    if scratch is not None:
        panel.axhline(scratch, color=COLOURS["scratch"], linewidth=0.8, linestyle="--")
    panel.set_ylim(-0.02, 1.0)
    panel.set_ylabel("DSC (higher is better)")
    panel.grid(axis="y", color="0.9")
    panel.set_axisbelow(True)


def _mean_dsc(cases: Iterable[CaseAverage]) -> float | None:
    values = [one.measures["dsc"] for one in cases if one.is_averaged]
    present = [value for value in values if value == value]  # noqa: PLR0124  (NaN is not itself)
    return fmean(present) if present else None


def _name_sources(panel: Axes, study: StudyConfig, columns: Sequence[Column]) -> None:
    places: dict[str, list[float]] = {}
    for column in columns:
        places.setdefault(column.arm.source, []).append(column.x)
    labels = ["scratch" if name == SCRATCH.source else source_label(study, name) for name in places]
    panel.set_xticks([fmean(xs) for xs in places.values()], labels)
    panel.tick_params(axis="x", length=0, labelbottom=True)
    for xs in list(places.values())[1:]:
        panel.axvline(xs[0] - 0.5 - _SOURCE_GAP / 2, color="0.8", linewidth=0.8)
    panel.set_xlim(-0.8, columns[-1].x + 0.8)


def _add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Name the strategies below the panels."""
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def _symbols(study: StudyConfig, averages: Sequence[CaseAverage]) -> list[Line2D]:
    """What the marks and lines of the DSC plot mean."""
    handles = [
        Line2D([], [], marker=marker, color="0.4", linestyle="none", markersize=5, label=group.capitalize())
        for group, marker in _markers_of_groups(study).items()
    ]
    if any(not one.is_averaged for one in averages):
        handles.append(
            Line2D([], [], marker=_NOT_AVERAGED_MARKER, color="0.4", linestyle="none", label="left out of means")
        )
    handles.append(Line2D([], [], color="0.4", linewidth=2.5, label="mean over cases"))
    handles.append(Line2D([], [], color="black", linewidth=0.8, linestyle="--", label="mean of scratch"))
    return handles


def _markers_of_groups(study: StudyConfig) -> dict[str, str]:
    groups = dict.fromkeys(group_of(case) for case in study.target.cases)
    return {group: _GROUP_MARKERS[index % len(_GROUP_MARKERS)] for index, group in enumerate(groups)}


def _strategies(study: StudyConfig) -> tuple[str, ...]:
    return tuple(dict.fromkeys(arm.strategy for arm in list_arms(study)))


def draw_convergence(study: StudyConfig, points: Sequence[CurvePoint]) -> Figure:
    """Mean validation DSC of each strategy over processor and over wall time, a column for each number of shots."""
    shots_drawn = [shots for shots in list_shots(study) if any(point.shots == shots for point in points)]
    figure = Figure(figsize=(max(6.5, 4.8 * len(shots_drawn)), 7.6), layout="constrained")
    panels = figure.subplots(2, len(shots_drawn), squeeze=False, sharey=True)
    for column, shots in enumerate(shots_drawn):
        of_shots = [point for point in points if point.shots == shots]
        for row, (clock, label) in enumerate(
            (("cpu_seconds", "processor time of the training, s"), ("seconds", "wall time of the training, s"))
        ):
            panel = panels[row, column]
            _draw_mean_curves(panel, study, of_shots, clock)
            panel.set_xlabel(label)
            panel.set_xlim(left=0)
            panel.grid(color="0.9")
            if row == 0:
                panel.set_title(f"trained on {count_cases(shots)}", loc="left", fontsize=10)
            if column == 0:
                panel.set_ylabel("validation DSC (higher is better)")
    handles = [
        Line2D([], [], color=COLOURS[name], marker=_LINE_MARKERS[name], markersize=5, label=name)
        for name in _strategies(study)
    ]
    figure.suptitle("Validation DSC over training time\nmean over sources and folds; pre-training not counted")
    _add_legend(figure, handles)
    return figure


def _draw_mean_curves(panel: Axes, study: StudyConfig, points: Sequence[CurvePoint], clock: str) -> None:
    """A line a strategy: at every validated step the mean time and DSC of its trainings."""
    for strategy in reversed(_strategies(study)):  # scratch last, on top
        by_step: dict[int, list[CurvePoint]] = {}
        for point in sorted(points, key=lambda point: point.step):
            if point.arm.strategy == strategy:
                by_step.setdefault(point.step, []).append(point)
        panel.plot(
            [fmean(getattr(point, clock) for point in of_step) for of_step in by_step.values()],
            [fmean(point.dsc for point in of_step) for of_step in by_step.values()],
            color=COLOURS[strategy],
            marker=_LINE_MARKERS[strategy],
            markersize=4.5,
            linewidth=2.2 if strategy == "scratch" else 1.5,
        )


def draw_fold_boxes(study: StudyConfig, results: Sequence[CaseResult]) -> Figure:
    """DSC of each fold's test cases by strategy, all sources together, a panel for each number of shots."""
    shots_drawn = [shots for shots in list_shots(study) if any(one.shots == shots for one in results)]
    most_folds = max(len(_folds(results, shots)) for shots in shots_drawn)
    width = max(7.0, 0.42 * most_folds * (len(_strategies(study)) + 1) + 1.5)
    figure = Figure(figsize=(width, 3.5 * len(shots_drawn) + 1.0), layout="constrained")
    panels = figure.subplots(len(shots_drawn), squeeze=False)[:, 0]
    for panel, shots in zip(panels, shots_drawn, strict=True):
        _draw_boxes(panel, study, results, _folds(results, shots))
        panel.set_title(f"trained on {count_cases(shots)}", loc="left", fontsize=10)
    handles = [Patch(facecolor=COLOURS[name], alpha=0.6, edgecolor="black", label=name) for name in _strategies(study)]
    figure.suptitle(
        "DSC of the test cases fold by fold, all sources together\nmedian, quartiles, whiskers to 1.5 × their distance"
    )
    _add_legend(figure, handles)
    return figure


def _folds(results: Iterable[CaseResult], shots: int) -> list[int]:
    return sorted({one.fold for one in results if one.shots == shots})


def _draw_boxes(panel: Axes, study: StudyConfig, results: Sequence[CaseResult], folds: Sequence[int]) -> None:
    strategies = _strategies(study)
    values: Mapping[tuple[int, str], list[float]] = {
        (fold, strategy): [
            dsc
            for one in results
            if one.fold == fold and one.arm.strategy == strategy and (dsc := one.measures["dsc"]) == dsc
        ]
        for fold in folds
        for strategy in strategies
    }
    for (fold, strategy), of_box in values.items():
        x = folds.index(fold) * (len(strategies) + 1) + strategies.index(strategy)
        drawn = panel.boxplot([of_box], positions=[x], widths=0.7, patch_artist=True, medianprops={"color": "black"})
        for box, flier in zip(drawn["boxes"], drawn["fliers"], strict=True):
            box.set(facecolor=(COLOURS[strategy], 0.6))
            flier.set(marker=".", markersize=4, markeredgecolor=COLOURS[strategy])
        if strategy == "scratch":
            drawn["medians"][0].set(color="white")  # black on black
    panel.set_xticks(
        [index * (len(strategies) + 1) + (len(strategies) - 1) / 2 for index in range(len(folds))],
        [f"fold {fold}" for fold in folds],
    )
    panel.set_ylim(-0.02, 1.0)
    panel.set_ylabel("DSC (higher is better)")
    panel.grid(axis="y", color="0.9")
    panel.set_axisbelow(True)
