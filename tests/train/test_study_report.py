import csv
import math
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from covidseg_runtime.errors import SettingsError
from covidseg_runtime.metrics import CaseMeasures
from covidseg_train.config import RunConfig
from covidseg_train.paired_tests import SEED, holm
from covidseg_train.published_results import PUBLISHED_ROWS
from covidseg_train.study import CURVES, RESULTS, Cell, as_numbers, list_cells, write_csv
from covidseg_train.study_config import FoldConfig, LesionSource, StudyConfig, TargetConfig
from covidseg_train.study_numbers import compute_numbers
from covidseg_train.study_plots import draw_convergence, draw_dsc, draw_fold_boxes, place_arms
from covidseg_train.study_report import describe_study, write_study_report
from covidseg_train.study_results import SCRATCH, Arm, CurvePoint, list_arms
from covidseg_train.study_summary import reach_of
from covidseg_train.study_tables import write_tables

A, B, C = "coronacases_001", "coronacases_002", "coronacases_003"
D, E, FAINT = "radiopaedia_1", "radiopaedia_2", "radiopaedia_3"
CONTINUAL, HYBRID = Arm("effusion", "continual"), Arm("effusion", "hybrid")


def small_study(**changes):
    """Two folds of one shot and one of two; six cases of two groups, one of them not averaged."""
    values = {
        "name": "small",
        "target": TargetConfig("covid-19-ct-seg-rebuilt", "covid", (A, B, C, D, E, FAINT), (FAINT,)),
        "folds": (FoldConfig((A,), (C,)), FoldConfig((B,), (C,)), FoldConfig((A, B), (C,))),
        "sources": (LesionSource("effusion", ()), LesionSource("opacities", (), kind="simulated")),
        "strategies": ("continual", "hybrid"),
        "joint": ("effusion",),
        "pretraining": RunConfig(),
        "fine_tuning": RunConfig(epochs=2, steps_per_epoch=10),
    }
    return StudyConfig(**{**values, **changes})


@dataclass(frozen=True)
class Training:
    """One cell's results as the study would have measured them."""

    cell: Cell
    dsc: dict[str, float]
    curve: tuple[tuple[int, float, float], ...] = ((10, 5.0, 0.3), (20, 10.0, 0.5))
    hausdorff_mm: float = 10.0
    volume_error_ml: float = -20.0


def measures_of(training, dsc):
    measures = CaseMeasures(
        dsc=dsc,
        nsd=dsc,
        hausdorff95_mm=training.hausdorff_mm,
        sensitivity=0.5,
        specificity=0.9,
        precision=0.6,
        f1=dsc,
        accuracy=0.9,
        mcc=dsc,
        predicted_ml=100.0 + training.volume_error_ml,
        reference_ml=100.0,
        volume_error_ml=training.volume_error_ml,
    )
    return as_numbers(measures)


def write_trainings(study, folder, trainings):
    """The two files that collect_results writes."""
    results, curves = [], []
    for training in trainings:
        cell = training.cell
        key = {**asdict(cell), "shots": len(study.folds[cell.fold].train)}
        spent = {"train_seconds": 2 * training.curve[-1][1], "train_cpu_seconds": training.curve[-1][1]}
        results += [{**key, "case": case, **measures_of(training, dsc), **spent} for case, dsc in training.dsc.items()]
        curves += [
            {**key, "step": step, "seconds": 2 * cpu, "cpu_seconds": cpu, "validation_dsc": dsc}
            for step, cpu, dsc in training.curve
        ]
    write_csv(folder / RESULTS, results)
    write_csv(folder / CURVES, curves)


def summary_of(numbers, arm, shots=1, group="all"):
    return next(one for one in numbers.summaries if (one.arm, one.shots, one.group) == (arm, shots, group))


def read_table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def report_of(study, folder):
    """The text alone, without drawing."""
    return "\n".join(describe_study(compute_numbers(study, folder), []))


SCRATCH_0 = Training(Cell("none", "scratch", 0), {B: 0.6, C: 0.5, D: 0.2, E: 0.3, FAINT: 0.0})
SCRATCH_1 = Training(Cell("none", "scratch", 1), {A: 0.7, C: 0.7, D: 0.4, E: 0.1, FAINT: 0.0})
HYBRID_0 = Training(Cell("effusion", "hybrid", 0), {B: 0.7, C: 0.6, D: 0.2, E: 0.4, FAINT: 1.0})
HYBRID_1 = Training(Cell("effusion", "hybrid", 1), {A: 0.9, C: 0.9, D: 0.5, E: 0.1, FAINT: 1.0})


@pytest.fixture
def numbers(tmp_path):
    write_trainings(small_study(), tmp_path, [SCRATCH_0, SCRATCH_1, HYBRID_0, HYBRID_1])
    return compute_numbers(small_study(), tmp_path)


def test_averages_over_tests_and_over_cases_by_hand(numbers):
    scratch = summary_of(numbers, SCRATCH)
    over_tests = [0.6, 0.5, 0.2, 0.3, 0.7, 0.7, 0.4, 0.1]  # FAINT is not averaged
    assert (scratch.folds, scratch.tests, scratch.cases) == (2, 8, 5)
    assert scratch.over_tests["dsc"].centre == pytest.approx(fmean(over_tests))
    assert scratch.over_tests["dsc"].sd == pytest.approx(stdev(over_tests))
    assert scratch.over_cases["dsc"].centre == pytest.approx(fmean([0.7, 0.6, 0.6, 0.3, 0.2]))


def test_groups_are_averaged_apart(numbers):
    assert summary_of(numbers, SCRATCH, group="coronacases").over_cases["dsc"].centre == pytest.approx(1.9 / 3)
    assert summary_of(numbers, SCRATCH, group="radiopaedia").over_cases["dsc"].centre == pytest.approx(0.25)


def test_difference_to_scratch_is_paired_by_case(numbers):
    by_case = [0.2, 0.1, 0.15, 0.05, 0.05]  # A B C D E, each the mean over the folds that tested it
    found = summary_of(numbers, HYBRID).against_scratch["dsc"]
    interval = stats.bootstrap(
        (by_case,), np.mean, n_resamples=9999, method="BCa", random_state=np.random.default_rng(SEED)
    ).confidence_interval
    assert found.cases == 5
    assert found.difference == pytest.approx(0.11)
    assert (found.lower, found.upper) == pytest.approx(tuple(interval))
    assert found.p == pytest.approx(2 / 2**5)
    assert found.p_holm == found.p  # the only comparison


def test_p_values_of_one_number_of_shots_are_corrected_together(tmp_path):
    worse = Training(Cell("effusion", "continual", 0), {B: 0.61, C: 0.48, D: 0.17, E: 0.26, FAINT: 0.0})
    other_shots = [
        Training(Cell(source, strategy, 2), dict.fromkeys((C, D, E), dsc))
        for source, strategy, dsc in (("none", "scratch", 0.5), ("effusion", "hybrid", 0.6))
    ]
    write_trainings(small_study(), tmp_path, [SCRATCH_0, SCRATCH_1, HYBRID_0, HYBRID_1, worse, *other_shots])
    numbers = compute_numbers(small_study(), tmp_path)
    first, second = (summary_of(numbers, arm).against_scratch["dsc"] for arm in (CONTINUAL, HYBRID))
    assert (first.p, second.p) == pytest.approx((0.25, 0.0625))  # ranks 1 of 4 against the rest: 4 of 16 patterns
    assert (first.p_holm, second.p_holm) == pytest.approx(holm([0.25, 0.0625]))
    alone = summary_of(numbers, HYBRID, shots=2).against_scratch["dsc"]
    assert alone.p_holm == alone.p == pytest.approx(2 / 2**3)


def test_only_folds_that_both_have_finished_are_compared(tmp_path):
    write_trainings(small_study(), tmp_path, [SCRATCH_0, HYBRID_0, HYBRID_1])
    found = summary_of(compute_numbers(small_study(), tmp_path), HYBRID).against_scratch["dsc"]
    assert found.cases == 4  # A was tested in fold 1 only
    assert found.difference == pytest.approx((0.1 + 0.1 + 0.0 + 0.1) / 4)


def test_missing_values_are_left_out_and_infinite_distances_stay_infinite(tmp_path):
    empty = Training(Cell("none", "scratch", 0), {B: math.nan, C: 0.4}, hausdorff_mm=math.inf)
    near = Training(Cell("none", "scratch", 1), {A: 0.8, C: 0.6}, hausdorff_mm=4.0)
    write_trainings(small_study(), tmp_path, [empty, near])
    one = summary_of(compute_numbers(small_study(), tmp_path), SCRATCH)
    assert one.over_tests["dsc"].centre == pytest.approx(0.6)
    assert one.over_cases["dsc"].centre == pytest.approx(0.65)
    assert one.over_tests["hausdorff95_mm"].centre == median([4.0, 4.0, math.inf, math.inf]) == math.inf
    assert "| infinite / infinite |" in report_of(small_study(), tmp_path)


def test_volume_error_is_given_signed_and_absolute(tmp_path):
    over = Training(Cell("none", "scratch", 0), {B: 0.5}, volume_error_ml=30.0)
    under = Training(Cell("none", "scratch", 1), {A: 0.5}, volume_error_ml=-20.0)
    write_trainings(small_study(), tmp_path, [over, under])
    assert "| +5 / +5 | 25 / 25 |" in report_of(small_study(), tmp_path)


def points(arm, *values):
    return [CurvePoint(arm, 1, 0, step, 2 * cpu, cpu, dsc) for step, cpu, dsc in values]


def test_reach_is_the_first_validation_at_what_scratch_ended_with():
    scratch = points(SCRATCH, (10, 4.0, 0.3), (20, 8.0, 0.6), (30, 12.0, 0.5))
    fast = reach_of(points(HYBRID, (10, 6.0, 0.5), (20, 12.0, 0.4)), scratch)
    assert (fast.threshold_dsc, fast.step, fast.cpu_seconds, fast.seconds) == (0.5, 10, 6.0, 12.0)
    assert fast.share_of_scratch == pytest.approx(6.0 / 8.0)  # scratch was there after 20 steps already
    never = reach_of(points(HYBRID, (10, 6.0, 0.1), (20, 12.0, 0.49)), scratch)
    assert never.step == never.cpu_seconds == never.share_of_scratch == math.inf


def test_convergence_table_counts_what_was_reached(tmp_path):
    early = Training(Cell("effusion", "hybrid", 0), HYBRID_0.dsc, curve=((10, 6.0, 0.5), (20, 12.0, 0.6)))
    never = Training(Cell("effusion", "hybrid", 1), HYBRID_1.dsc, curve=((10, 6.0, 0.1), (20, 14.0, 0.2)))
    write_trainings(small_study(), tmp_path, [SCRATCH_0, SCRATCH_1, early, never])
    folder = tmp_path / "pretraining" / "effusion"
    folder.mkdir(parents=True)
    write_csv(folder / "log.csv", [{"step": step, "seconds": 99.4, "cpu_seconds": step} for step in (50, 100)])
    text = report_of(small_study(), tmp_path)
    assert "| 1 | scratch | 2 | 10 | 20 | 2 of 2 | 20 | 10 | 1.00 |" in text
    assert "| 1 | hybrid | 2 | 13 | 26 | 1 of 2 | infinite | infinite | infinite |" in text
    assert "| effusion | 100 | 100 | 99 |" in text
    write_all_tables(tmp_path)
    rows = read_table(tmp_path / "convergence.csv")
    assert [row["step"] for row in rows if row["strategy"] == "hybrid"] == ["10", "inf"]


def test_report_says_what_came_out(tmp_path):
    write_trainings(small_study(), tmp_path, [SCRATCH_0, SCRATCH_1, HYBRID_0, HYBRID_1])
    text = report_of(small_study(), tmp_path)
    assert "4 of 18 cells finished." in text
    assert "Trained on 1 case: a higher mean DSC than scratch in 1 of 1 arms (1 with an interval" in text
    assert "Largest difference: hybrid from effusion, +0.110 [+0.0" in text
    assert "| – | scratch | 2 of 2 | 8 / 5 | 0.438 / 0.480 | – | – | – | 0.438 / 0.480 | 10.0 / 10.0 |" in text
    assert "| effusion | hybrid | 2 of 2 | 8 / 5 | 0.537 / 0.590 | +0.110 [" in text
    assert f"| {FAINT} | 1 | 0.000 | 1.000 to 1.000 |" in text
    assert f"left out of every mean and test: {FAINT}" in text
    assert "No cell is finished." in text  # of two shots
    # The squares of the eight DSC sum to 1.89, their mean is 0.4375: (1.89 - 8 * 0.4375²) / 7 = 0.226².
    assert "| **this study**, scratch | target | 1 | 0.438 ± 0.226 | 0.438 ± 0.226 |" in text
    assert "| Task 1, infection alone | COVID-19 | 4 | 0.673 ± 0.223 | 0.700 ± 0.244 |" in text
    assert "not comparable to the point" in text
    assert "8-bit slices" in text


def write_all_tables(folder):
    numbers = compute_numbers(small_study(), folder)
    write_tables(folder, numbers.summaries, numbers.averages, numbers.convergence)


def test_csv_files_hold_every_case_with_full_digits(tmp_path):
    write_trainings(small_study(), tmp_path, [SCRATCH_0, SCRATCH_1, HYBRID_0, HYBRID_1])
    write_all_tables(tmp_path)
    cases = {(row["strategy"], row["case"]): row for row in read_table(tmp_path / "cases.csv")}
    assert float(cases["hybrid", C]["dsc"]) == pytest.approx(0.75)
    assert (cases["scratch", FAINT]["averaged"], cases["scratch", FAINT]["tests"]) == ("no", "2")
    first, *_ = read_table(tmp_path / "summary.csv")
    assert (first["strategy"], first["group"], first["dsc_against_scratch_p"]) == ("scratch", "all", "")
    assert float(first["dsc_over_cases"]) == pytest.approx(0.48)


def test_arms_without_scratch_are_shown_without_comparison(tmp_path):
    write_trainings(small_study(), tmp_path, [HYBRID_0])
    text = report_of(small_study(), tmp_path)
    assert "No arm can be compared with scratch yet." in text
    assert "| effusion | hybrid | 1 of 2 | 4 / 4 | 0.475 / 0.475 | – | – | – |" in text


def test_nothing_finished_is_a_report_without_plots(tmp_path):
    write_trainings(small_study(), tmp_path, [])
    written = write_study_report(small_study(), tmp_path)
    assert "0 of 18 cells finished." in written[0].read_text("utf-8")
    assert not [path for path in written if path.suffix == ".png"]


def test_results_of_no_study_or_another_one_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"results\.csv is missing"):
        write_study_report(small_study(), tmp_path)
    write_trainings(small_study(), tmp_path, [Training(Cell("none", "scratch", 0), {"somebody": 0.5})])
    with pytest.raises(SettingsError, match=r"holds somebody; only the study's target\.cases"):
        write_study_report(small_study(), tmp_path)


def simulated_trainings(study, seed=7):
    """Results of every cell, drawn at random about a level a case and a gain a strategy."""
    rng = np.random.default_rng(seed)
    level = {
        case: rng.uniform(0.45, 0.75) if case.startswith("corona") else rng.uniform(0.1, 0.6)
        for case in study.target.cases
    }
    gain = {"scratch": 0.0, "joint": -0.04, "continual": 0.02, "body": 0.02, "encoder": 0.01, "hybrid": 0.03}
    for cell in list_cells(study):
        fold = study.folds[cell.fold]
        shift = gain[cell.strategy] + 0.03 * len(fold.train) + rng.normal(0, 0.02)
        tested = [case for case in study.target.cases if case not in fold.train]
        dsc = {case: float(np.clip(level[case] + shift + rng.normal(0, 0.03), 0, 1)) for case in tested}
        dsc |= dict.fromkeys(set(tested) & set(study.target.not_averaged), 0.01)
        rate, pace = rng.uniform(0.3, 0.6) + 10 * gain[cell.strategy], 1.7 if cell.strategy == "hybrid" else 1.0
        curve = [(40 * i, pace * 30.0 * i, (0.55 + shift) * (1 - math.exp(-max(rate, 0.2) * i))) for i in range(1, 6)]
        yield Training(cell, dsc, tuple(curve), hausdorff_mm=rng.uniform(10, 60), volume_error_ml=rng.normal(0, 60))


def test_whole_study_is_written_and_drawn_the_same_each_time(tmp_path):
    study = small_study()
    write_trainings(study, tmp_path, simulated_trainings(study))
    written = write_study_report(study, tmp_path)
    tables, plots = [path.name for path in written[:4]], written[4:]
    assert tables == ["study.md", "summary.csv", "cases.csv", "convergence.csv"]
    assert [path.name for path in plots] == ["dsc.png", "convergence.png", "folds.png"]
    text = written[0].read_text("utf-8")
    assert "18 of 18 cells finished." in text
    for path in plots:
        assert f"]({path.name})" in text
        with Image.open(path) as image:
            image.verify()
            assert image.format == "PNG"
            assert min(image.size) > 600
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_study_report(study, tmp_path)] == first


def test_plots_show_every_number_of_shots_and_say_what_is_simulated(tmp_path):
    study = small_study()
    write_trainings(study, tmp_path, simulated_trainings(study))
    numbers = compute_numbers(study, tmp_path)
    dsc = draw_dsc(study, numbers.averages)
    assert [panel.get_title(loc="left") for panel in dsc.axes] == ["trained on 1 case", "trained on 2 cases"]
    assert [label.get_text() for label in dsc.axes[0].get_xticklabels()] == [
        "scratch",
        "effusion",
        "opacities (simulated)",
    ]
    curves = draw_convergence(study, numbers.curves)
    assert len(curves.axes) == 4  # two clocks
    assert curves.axes[0].get_lines()[-1].get_color() == "#000000"  # scratch, on top
    boxes = draw_fold_boxes(study, numbers.results)
    assert [label.get_text() for label in boxes.axes[0].get_xticklabels()] == ["fold 0", "fold 1"]


def test_arms_are_placed_source_by_source_with_joint_at_its_source():
    columns = place_arms(small_study())
    assert {column.arm for column in columns} == set(list_arms(small_study()))
    assert [column.arm.source for column in columns] == ["none", *["effusion"] * 3, *["opacities"] * 2]
    steps = np.diff([column.x for column in columns])
    assert steps == pytest.approx([1.9, 1, 1, 1.9, 1])


def test_published_rows_are_shares_of_one():
    assert all(0 <= value <= 1 for row in PUBLISHED_ROWS for value in (row.dsc, row.dsc_sd, row.nsd, row.nsd_sd))
