"""Sources × strategies × folds, cell by cell: what is done stays done, several processes share the work.

Every cell is a folder with a training in it, and ``measures.json`` once it is finished; where the study refines, the
second training lies in ``refined`` below it, a third in ``refined-2``, and the measures beside the last. A process
takes a cell by a lock that its end releases, however it ends; start the command again, or several times at once, to
go on.
"""

import csv
import fnmatch
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from covidseg_runtime.errors import SettingsError
from covidseg_runtime.metrics import CaseMeasures
from covidseg_runtime.volume_files import write_json
from covidseg_train.claim import claim
from covidseg_train.config import DataConfig, ExperimentConfig, SourceConfig, Strategy, TransferConfig
from covidseg_train.datasets.catalog import get_dataset
from covidseg_train.datasets.dataset import find_named_cases
from covidseg_train.fit import LAST, fit
from covidseg_train.simulated_cases import write_simulated_cases
from covidseg_train.study_config import LesionSource, RefinementConfig, StudyConfig
from covidseg_train.toml_files import build_from_dict
from covidseg_train.validate import measure_checkpoint

SCRATCH_SOURCE = "none"
MEASURES = "measures.json"
REFINED = "refined"
RESULTS, CURVES = "results.csv", "curves.csv"
TASK = "lesion"
_WAIT_SECONDS = 5.0
_ADDED_UP = ("step", "seconds", "cpu_seconds")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One training of the study.

    Attributes:
        source: Name of the source; ``none`` for scratch.
        strategy: A transfer strategy, or ``joint``.
        fold: Index of the fold.
    """

    source: str
    strategy: Strategy | Literal["joint"]
    fold: int

    @property
    def folder_name(self) -> str:
        """Folder of the cell below ``cells``."""
        return f"fold{self.fold}-{self.strategy}-{self.source}"


@dataclass(frozen=True)
class Places:
    """Where a study finds and leaves things.

    Attributes:
        study: The study's own folder.
        data: The data root.
    """

    study: Path
    data: Path

    def cell(self, cell: Cell) -> Path:
        """Folder of a cell."""
        return self.study / "cells" / cell.folder_name

    def trainings(self, cell: Cell, study: StudyConfig) -> tuple[Path, ...]:
        """Folders of a cell's trainings, in their order."""
        first = self.cell(cell)
        return first, *(first / refined_name(index) for index in range(len(study.refinement)))

    def result(self, cell: Cell, study: StudyConfig) -> Path:
        """Folder of a cell's last training, which is measured."""
        return self.trainings(cell, study)[-1]

    def pretraining(self, source: str) -> Path:
        """Folder of a source's pre-training."""
        return self.study / "pretraining" / source

    def simulated(self) -> Path:
        """Folder of the simulated cases."""
        return self.study / "simulated"


def run_study(
    study: StudyConfig, places: Places, *, device: str = "auto", report: Report, only: Sequence[str] = ()
) -> None:
    """Run what is left of a study, then write its results.

    Args:
        study: The study.
        places: Folders.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.
        report: Gets one line a finished piece of work.
        only: As in `choose_cells`; pre-trainings are run whole.

    Raises:
        SettingsError: If the folder holds another study, or no cell is chosen.
        VolumeError: If a case is missing or unsuitable.
    """
    cells = choose_cells(study, only)
    places.study.mkdir(parents=True, exist_ok=True)
    require_same_study(study, places)
    make_simulated_cases(study, places)
    while open_cells := [cell for cell in cells if not (places.result(cell, study) / MEASURES).is_file()]:
        worked = pretrain_what_is_free(study, places, device, report)
        worked |= train_what_is_free(study, places, open_cells, device, report)
        if not worked:
            time.sleep(_WAIT_SECONDS)  # other processes hold all that is left
    collect_results(study, places)


def require_same_study(study: StudyConfig, places: Places) -> None:
    """Write the study down in its folder, or compare it with the one that stands there.

    Raises:
        SettingsError: If they differ: cells of two studies must not end in one table.
    """
    path = places.study / "study.json"
    with claim(places.study / "study.lock", wait=True):
        if not path.is_file():
            write_json(path, json.loads(json.dumps(asdict(study))))
        elif _read_study(path) != study:
            raise SettingsError(f"{places.study} holds another study than {study.name} as it is now; give another -o.")


def _read_study(path: Path) -> StudyConfig:
    """A study as it was written down; what it could not say yet at that time has its default."""
    values = json.loads(path.read_text("utf-8"))
    return build_from_dict(StudyConfig, {key: value for key, value in values.items() if value is not None}, str(path))


def list_cells(study: StudyConfig) -> tuple[Cell, ...]:
    """Every cell, fold by fold, so that a study that was stopped early has whole folds."""
    return tuple(
        cell
        for fold in range(len(study.folds))
        for cell in (
            Cell(SCRATCH_SOURCE, "scratch", fold),
            *(Cell(name, "joint", fold) for name in study.joint),
            *(Cell(source.name, strategy, fold) for source in study.sources for strategy in study.strategies),
        )
    )


def choose_cells(study: StudyConfig, patterns: Sequence[str]) -> tuple[Cell, ...]:
    """The cells whose folder's name one of the patterns fits, as a shell's do; all of them without patterns.

    Raises:
        SettingsError: If a pattern fits none.
    """
    cells = {cell.folder_name: cell for cell in list_cells(study)}
    for pattern in patterns:
        if not fnmatch.filter(cells, pattern):
            raise SettingsError(f"No cell of the study {study.name} is called {pattern!r}; it has {', '.join(cells)}.")
    fits = {name for pattern in patterns or ("*",) for name in fnmatch.filter(cells, pattern)}
    return tuple(cell for name, cell in cells.items() if name in fits)


def make_simulated_cases(study: StudyConfig, places: Places) -> None:
    """Simulate the cases of the study once."""
    done = places.simulated() / "done.json"
    if study.simulation is None:
        return
    with claim(places.study / "simulated.lock", wait=True):
        if done.is_file():
            return
        hosts = [places.data / host for host in study.simulation.hosts]
        places.simulated().mkdir(exist_ok=True)
        write_simulated_cases(hosts, places.simulated(), per_host=study.simulation.per_host, seed=study.simulation.seed)
        write_json(done, asdict(study.simulation))


def pretrain_what_is_free(study: StudyConfig, places: Places, device: str, report: Report) -> bool:
    """Run the pre-trainings that nobody has done or is doing; whether there was one."""
    worked = False
    for source in study.sources:
        folder = places.pretraining(source.name)
        if is_pretrained(folder):
            continue
        with claim(folder.with_suffix(".lock")) as is_mine:
            if not is_mine or is_pretrained(folder):
                continue
            began = time.monotonic()
            fit(pretraining_experiment(study, places, source), folder, device=device)
            write_json(folder / "done.json", {"source": source.name})
            report(f"pre-trained on {source.name} in {time.monotonic() - began:.0f} s")
            worked = True
    return worked


def is_pretrained(folder: Path) -> bool:
    """Whether a pre-training has come to its end."""
    return (folder / "done.json").is_file()


def train_what_is_free(study: StudyConfig, places: Places, cells: Sequence[Cell], device: str, report: Report) -> bool:
    """Run the cells that can be run and that nobody has done or is doing; whether there was one."""
    worked = False
    for cell in cells:
        folder = places.cell(cell)
        needs_weights = cell.strategy not in ("scratch", "joint")
        if needs_weights and not is_pretrained(places.pretraining(cell.source)):
            continue
        with claim(folder.with_suffix(".lock")) as is_mine:
            if not is_mine or (places.result(cell, study) / MEASURES).is_file():
                continue
            run_cell(study, places, cell, device)
            report(describe_cell(study, places, cell))
            worked = True
    return worked


def run_cell(study: StudyConfig, places: Places, cell: Cell, device: str) -> None:
    """Train one cell and measure it on every case it has not seen."""
    folder, experiment = places.result(cell, study), cell_experiment(study, places, cell)
    fit(experiment, places.cell(cell), device=device)
    for index, (before, after) in enumerate(pairwise(places.trainings(cell, study))):
        fit(refined_experiment(experiment, study.refinement[index], before / LAST, index), after, device=device)
    tested = [name for name in study.target.cases if name not in study.folds[cell.fold].train]
    dataset = get_dataset(study.target.dataset)
    files = find_named_cases(dataset, Path(experiment.data.root), tuple(tested))
    # The last checkpoint, not the best: the curve's cases are test cases and must select nothing.
    measures = measure_checkpoint(folder / LAST, dataset, files, device=device)
    write_json(folder / MEASURES, {name: as_numbers(one) for name, one in measures.items()})


def describe_cell(study: StudyConfig, places: Places, cell: Cell) -> str:
    """One line on a finished cell."""
    measures = read_measures(places.result(cell, study))
    cells = list_cells(study)
    done = sum((places.result(one, study) / MEASURES).is_file() for one in cells)
    dsc = [value for one in measures.values() if (value := one["dsc"]) is not None]
    mean = f"{sum(dsc) / len(dsc):.3f}" if dsc else "–"
    return f"[{done}/{len(cells)}] fold {cell.fold} {cell.strategy} from {cell.source}: mean DSC {mean}"


def as_numbers(measures: CaseMeasures) -> dict[str, float | None]:
    """The measures of a case for JSON, which has neither NaN nor infinity: None and 1e9."""
    return {
        name: None if value != value else min(max(value, -1e9), 1e9)  # noqa: PLR0124  (NaN is not itself)
        for name, value in asdict(measures).items()
    }


def pretraining_experiment(study: StudyConfig, places: Places, source: LesionSource) -> ExperimentConfig:
    """The pre-training of one source; tasks of its sets get heads of their own."""
    first, *others = (placed(one, places) for one in source.sets)
    data = DataConfig(
        dataset=first.dataset,
        root=first.root,
        train=first.train,
        cache=str(places.study / "cache"),
        target=study.told_apart,
        task=first.task,
        weight=first.weight,
        sources=tuple(others),
    )
    return _experiment(study, f"{study.name}-{source.name}", data, pretraining=True)


def cell_experiment(study: StudyConfig, places: Places, cell: Cell) -> ExperimentConfig:
    """The training of one cell."""
    fold = study.folds[cell.fold]
    joined = study.target.beside
    if cell.strategy == "joint":
        joined += next(source for source in study.sources if source.name == cell.source).sets
    data = DataConfig(
        dataset=study.target.dataset,
        root=str(places.data / study.target.root),
        train=fold.train,
        validation=fold.curve,
        test=tuple(
            name for name in study.target.cases if name not in (*fold.train, *fold.curve, *study.target.not_averaged)
        ),
        cache=str(places.study / "cache"),
        target=study.told_apart,
        task=TASK,
        sources=tuple(replace(placed(one, places), task=TASK) for one in joined),
    )
    experiment = _experiment(study, f"{study.name}-{cell.folder_name}", data, pretraining=False)
    if cell.strategy == "scratch" or cell.strategy == "joint":
        return experiment
    checkpoint = str(places.pretraining(cell.source) / LAST)
    transfer = TransferConfig(cell.strategy, checkpoint, study.fusion, study.frozen_steps, study.rate_factor)
    return replace(experiment, transfer=transfer)


def refined_name(index: int) -> str:
    """What a refinement is called, in its folder and its experiment; ``index`` counts from 0."""
    return REFINED if index == 0 else f"{REFINED}-{index + 1}"


def refined_experiment(
    first: ExperimentConfig, refinement: RefinementConfig, checkpoint: Path, index: int
) -> ExperimentConfig:
    """A further training of a cell, from the last weights of the one before; a hybrid stays one."""
    strategy: Strategy = "hybrid" if first.transfer.strategy == "hybrid" else "continual"
    return replace(
        first,
        name=f"{first.name}-{refined_name(index)}",
        augmentation=refinement.augmentation or first.augmentation,
        optimiser=replace(first.optimiser, learning_rate=refinement.learning_rate),
        run=refinement.run,
        transfer=TransferConfig(strategy, str(checkpoint), first.transfer.fusion),
    )


def _experiment(study: StudyConfig, name: str, data: DataConfig, *, pretraining: bool) -> ExperimentConfig:
    return ExperimentConfig(
        name=name,
        data=data,
        grid=study.grid,
        network=study.network,
        patches=study.patches,
        augmentation=study.augmentation,
        optimiser=study.optimiser,
        run=study.pretraining if pretraining else study.fine_tuning,
        tiles=study.tiles,
    )


def placed(source: SourceConfig, places: Places) -> SourceConfig:
    """A set with the folder it has on this machine."""
    if get_dataset(source.dataset).is_simulated:
        return replace(source, root=str(places.simulated()))
    return replace(source, root=str(places.data / source.root))


def collect_results(study: StudyConfig, places: Places) -> None:
    """Write every finished cell's measures and curve as two long CSV files."""
    finished = [cell for cell in list_cells(study) if (places.result(cell, study) / MEASURES).is_file()]
    results, curves = [], []
    for cell in finished:
        fold = study.folds[cell.fold]
        key = {"source": cell.source, "strategy": cell.strategy, "shots": len(fold.train), "fold": cell.fold}
        log = read_logs(study, places, cell)
        spent = {"train_seconds": log[-1]["seconds"], "train_cpu_seconds": log[-1]["cpu_seconds"]}
        measured = read_measures(places.result(cell, study))
        results += [{**key, "case": case, **measures, **spent} for case, measures in measured.items()]
        curves += [
            {**key, **{name: row[name] for name in ("step", "seconds", "cpu_seconds", "validation_dsc")}}
            for row in log
            if row["validation_dsc"]
        ]
    write_csv(places.study / RESULTS, results)
    write_csv(places.study / CURVES, curves)


def read_measures(folder: Path) -> dict[str, dict[str, float | None]]:
    """The measures of a finished cell by case, from the folder of its last training."""
    measures: dict[str, dict[str, float | None]] = json.loads((folder / MEASURES).read_text("utf-8"))
    return measures


def read_logs(study: StudyConfig, places: Places, cell: Cell) -> list[dict[str, str]]:
    """The log of a cell's trainings as one: steps and seconds of a refinement go on from those before."""
    rows: list[dict[str, str]] = []
    for folder in places.trainings(cell, study):
        spent = {name: float(rows[-1][name]) if rows else 0.0 for name in _ADDED_UP}
        rows += [
            {**row, **{name: f"{float(row[name]) + spent[name]:.10g}" for name in _ADDED_UP}}
            for row in read_log(folder)
        ]
    return rows


def read_log(folder: Path) -> list[dict[str, str]]:
    """The lines of a training's log."""
    with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of the same keys; an absent number is an empty field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
