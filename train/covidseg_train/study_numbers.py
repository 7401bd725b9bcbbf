"""Everything the report of a study is written from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from covidseg_train.study_config import StudyConfig
from covidseg_train.study_results import (
    CaseResult,
    Cost,
    CurvePoint,
    read_curves,
    read_pretraining_costs,
    read_results,
)
from covidseg_train.study_summary import (
    ArmSummary,
    CaseAverage,
    Convergence,
    average_cases,
    measure_convergence,
    summarise,
)


@dataclass(frozen=True)
class StudyNumbers:
    """What a study measured, and what was computed from it.

    Attributes:
        study: The study.
        results: Its tested cases.
        curves: Its validations.
        averages: Every case over the folds that tested it.
        summaries: Every arm, on all cases and group by group.
        convergence: When each training reached what scratch ended with.
        pretraining: Cost by source, for those that have a log.
    """

    study: StudyConfig
    results: tuple[CaseResult, ...]
    curves: tuple[CurvePoint, ...]
    averages: tuple[CaseAverage, ...]
    summaries: tuple[ArmSummary, ...]
    convergence: tuple[Convergence, ...]
    pretraining: Mapping[str, Cost]

    def summaries_of(self, shots: int, group: str) -> list[ArmSummary]:
        """Every arm with one number of shots on one group of cases."""
        return [one for one in self.summaries if one.shots == shots and one.group == group]


def compute_numbers(study: StudyConfig, folder: Path) -> StudyNumbers:
    """Read a study's folder and compute what the report says.

    Raises:
        SettingsError: If the folder holds no results, or those of another study.
    """
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
