"""The two CSV files of a study, read back as frozen values."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from covidseg_runtime.errors import SettingsError
from covidseg_runtime.metrics import CaseMeasures
from covidseg_train.study import CURVES, RESULTS, SCRATCH_SOURCE, list_cells
from covidseg_train.study_config import StudyConfig

# JSON knows no infinity; the study writes this instead.
_INFINITE = 1e9
MEASURES = tuple(field.name for field in fields(CaseMeasures))
ABSOLUTE_VOLUME_ERROR = "absolute_volume_error_ml"


@dataclass(frozen=True)
class Arm:
    """A way to train that is compared.

    Attributes:
        source: Name of the source; ``none`` for scratch.
        strategy: A transfer strategy, or ``joint``.
    """

    source: str
    strategy: str


SCRATCH = Arm(SCRATCH_SOURCE, "scratch")


@dataclass(frozen=True)
class CaseResult:
    """One case tested by one training.

    Attributes:
        arm: How it was trained.
        shots: Cases it was trained on.
        fold: Index of the fold.
        case: The tested case.
        measures: ``MEASURES`` and ``ABSOLUTE_VOLUME_ERROR``; NaN where missing, infinite where a mask was empty.
        seconds: Wall time of the training.
        cpu_seconds: Processor time of the training.
    """

    arm: Arm
    shots: int
    fold: int
    case: str
    measures: Mapping[str, float]
    seconds: float
    cpu_seconds: float

    @property
    def group(self) -> str:
        """Where the case comes from."""
        return group_of(self.case)


@dataclass(frozen=True)
class CurvePoint:
    """One validation of one training.

    Attributes:
        arm: How it is trained.
        shots: Cases it is trained on.
        fold: Index of the fold.
        step: Optimiser steps so far.
        seconds: Wall time so far.
        cpu_seconds: Processor time so far.
        dsc: Mean DSC of the fold's curve cases.
    """

    arm: Arm
    shots: int
    fold: int
    step: int
    seconds: float
    cpu_seconds: float
    dsc: float


@dataclass(frozen=True)
class Cost:
    """Length of a training."""

    steps: int
    seconds: float
    cpu_seconds: float


def group_of(case: str) -> str:
    """The part of a case's name before its first underscore."""
    return case.split("_", 1)[0]


def list_arms(study: StudyConfig) -> tuple[Arm, ...]:
    """Every arm in the order of the tables: scratch, joint, then source by source."""
    return tuple(dict.fromkeys(Arm(cell.source, cell.strategy) for cell in list_cells(study)))


def source_label(study: StudyConfig, name: str) -> str:
    """Name of a source as readers see it; one that is simulated says so."""
    is_simulated = any(source.name == name and source.kind == "simulated" for source in study.sources)
    return f"{name} (simulated)" if is_simulated and "simulated" not in name else name


def count_cases(shots: int) -> str:
    """A number of training cases in words."""
    return "1 case" if shots == 1 else f"{shots} cases"


def list_shots(study: StudyConfig) -> tuple[int, ...]:
    """The numbers of training cases, smallest first."""
    return tuple(sorted({len(fold.train) for fold in study.folds}))


def read_results(study: StudyConfig, folder: Path) -> tuple[CaseResult, ...]:
    """The tested cases of a study's folder.

    Raises:
        SettingsError: If the folder holds no results, or some of another study.
    """
    results = tuple(
        CaseResult(
            arm=Arm(row["source"], row["strategy"]),
            shots=int(row["shots"]),
            fold=int(row["fold"]),
            case=row["case"],
            measures=_measures(row),
            seconds=float(row["train_seconds"]),
            cpu_seconds=float(row["train_cpu_seconds"]),
        )
        for row in _rows(folder / RESULTS)
    )
    unknown = sorted({one.case for one in results} - set(study.target.cases))
    if unknown:
        raise SettingsError(
            f"{folder / RESULTS} holds {', '.join(unknown)}; only the study's target.cases are expected. Give the "
            "folder of this study."
        )
    return results


def read_curves(folder: Path) -> tuple[CurvePoint, ...]:
    """The validations of a study's folder.

    Raises:
        SettingsError: If the folder holds no curves.
    """
    return tuple(
        CurvePoint(
            arm=Arm(row["source"], row["strategy"]),
            shots=int(row["shots"]),
            fold=int(row["fold"]),
            step=int(row["step"]),
            seconds=float(row["seconds"]),
            cpu_seconds=float(row["cpu_seconds"]),
            dsc=float(row["validation_dsc"]),
        )
        for row in _rows(folder / CURVES)
    )


def read_pretraining_costs(study: StudyConfig, folder: Path) -> dict[str, Cost]:
    """What the pre-training of each source has cost so far, for those that have a log."""
    costs = {}
    for source in study.sources:
        log = folder / "pretraining" / source.name / "log.csv"
        if log.is_file() and (rows := _rows(log)):
            last = rows[-1]
            costs[source.name] = Cost(int(last["step"]), float(last["seconds"]), float(last["cpu_seconds"]))
    return costs


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise SettingsError(f"{path} is missing; run the study first, or give the folder of one that was run.")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _measures(row: Mapping[str, str]) -> dict[str, float]:
    measures = {name: _number(row[name]) for name in MEASURES}
    return {**measures, ABSOLUTE_VOLUME_ERROR: abs(measures["volume_error_ml"])}


def _number(text: str) -> float:
    value = float(text) if text else math.nan
    return math.copysign(math.inf, value) if abs(value) >= _INFINITE else value
