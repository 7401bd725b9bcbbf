"""The benchmark's splits, and whether a patient sits on both sides of one.

Case lists are those published with the benchmark (Ma et al., Medical Physics 2021), kept in ``datasets/splits``:

- Task 1: 20 COVID-19 cases in five folds, 4 to train and 16 to test; ``task1_80_20_folds`` is its reverse.
- Task 2: one lesion set to train and validate, all 20 COVID-19 cases to test.
- Task 3: both together, by rule: the lesion set of Task 2 and the fold of Task 1.

The 20 scans are of 19 patients: radiopaedia_10_85902_1 and radiopaedia_10_85902_3 are one, who is trained on and
tested in folds 2 and 4. Published figures hold this leak; ``without_leaks`` gives the variant that does not.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from covidseg_runtime.errors import SettingsError

_FOLDER = Path(__file__).parent / "datasets" / "splits"


@dataclass(frozen=True)
class BenchmarkFold:
    """Which cases take which part. In Task 3 the names of ``train`` are of two data sets.

    Attributes:
        train: Case names learned from.
        validation: Case names that may pick a checkpoint; empty in Task 1.
        test: Case names held out.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def parts(self) -> tuple[tuple[str, ...], ...]:
        """Train, validation and test, in the order in which a patient is claimed."""
        return self.train, self.validation, self.test


@dataclass(frozen=True)
class Leak:
    """A patient in more than one part of a fold.

    Attributes:
        fold: Index of the fold.
        patient: The patient.
        cases: The patient's cases, those of the earlier part first.
    """

    fold: int
    patient: str
    cases: tuple[str, ...]


def task1_folds() -> tuple[BenchmarkFold, ...]:
    """Task 1: five folds of 4 cases to train and 16 to test."""
    return _read_folds("task1")


def task1_80_20_folds() -> tuple[BenchmarkFold, ...]:
    """Task 1 reversed: five folds of 16 cases to train and 4 to test."""
    return _read_folds("task1_80_20")


def task2_split(dataset: str) -> BenchmarkFold:
    """Task 2: train and validate on one lesion set, test on the 20 COVID-19 cases.

    Args:
        dataset: ``msd-lung-tumour``, ``structseg-2019-gtv`` or ``nsclc-pleural-effusion``; the lung sets
            ``structseg-2019-lung`` and ``nsclc-lung`` have a split too, though covidseg does not read them.

    Raises:
        SettingsError: If the benchmark does not split this set.
    """
    task = _read("task2")
    if dataset not in task["sets"]:
        raise SettingsError(f"The benchmark has no split of {dataset!r}; it splits {', '.join(task['sets'])}.")
    parts = task["sets"][dataset]
    return BenchmarkFold(tuple(parts["train"]), tuple(parts["validation"]), tuple(task["test"]))


def task3_folds(dataset: str) -> tuple[BenchmarkFold, ...]:
    """Task 3: the lesion set's training cases and four COVID-19 cases a fold, tested on the fold's other 16.

    Args:
        dataset: As in `task2_split`.

    Raises:
        SettingsError: If the benchmark does not split this set.
    """
    lesion = task2_split(dataset)
    return tuple(BenchmarkFold((*lesion.train, *fold.train), lesion.validation, fold.test) for fold in task1_folds())


def find_leaks(folds: Sequence[BenchmarkFold], patient_of: Callable[[str], str]) -> tuple[Leak, ...]:
    """Find every patient who sits in more than one part of a fold.

    Args:
        folds: The folds.
        patient_of: The patient of a case.
    """
    leaks = []
    for index, fold in enumerate(folds):
        patients = [{patient_of(case) for case in part} for part in fold.parts()]
        everyone = set().union(*patients)
        for leaked in sorted(one for one in everyone if sum(one in part for part in patients) > 1):
            cases = tuple(case for part in fold.parts() for case in part if patient_of(case) == leaked)
            leaks.append(Leak(index, leaked, cases))
    return tuple(leaks)


def without_leaks(folds: Sequence[BenchmarkFold], patient_of: Callable[[str], str]) -> tuple[BenchmarkFold, ...]:
    """The same folds without the cases of a patient whom an earlier part of the fold holds.

    Training cases stay, so that weights are those of the published fold; what a trained patient's other scan would
    have added to validation or test is dropped.

    Args:
        folds: The folds.
        patient_of: The patient of a case.
    """
    return tuple(_without_leaks(fold, patient_of) for fold in folds)


def _without_leaks(fold: BenchmarkFold, patient_of: Callable[[str], str]) -> BenchmarkFold:
    claimed: set[str] = set()
    parts = []
    for part in fold.parts():
        kept = tuple(case for case in part if patient_of(case) not in claimed)
        claimed |= {patient_of(case) for case in kept}
        parts.append(kept)
    return BenchmarkFold(*parts)


def _read_folds(name: str) -> tuple[BenchmarkFold, ...]:
    return tuple(BenchmarkFold(tuple(fold["train"]), (), tuple(fold["test"])) for fold in _read(name)["folds"])


@cache
def _read(name: str) -> dict[str, Any]:
    return dict(json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8")))
