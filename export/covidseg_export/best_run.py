"""Which trained network is the best: a written rule, and the table it chose from.

The rule: the highest mean validation DSC over folds; where four decimals are equal, the highest mean NSD; then the
fewest parameters. Validation cases are those a fold neither learned from nor is tested on; in a study, those of its
curve. Folds of one arm, trained on as many cases, are one candidate.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from covidseg_runtime.errors import BundleError
from covidseg_train.checkpoint import load_checkpoint
from covidseg_train.fit import BEST
from covidseg_train.study import MEASURES
from covidseg_train.transfer import build_network
from covidseg_train.unet import count_parameters

_FOLD = re.compile(r"-?fold\d+")  # in the name of an experiment


@dataclass(frozen=True)
class TrainedRun:
    """One training.

    Attributes:
        folder: Where it lies.
        arm: What it shares with its other folds.
        dsc: Mean validation DSC.
        nsd: Mean validation NSD; None where the training did not measure it.
        parameters: Of the network.
    """

    folder: Path
    arm: str
    dsc: float
    nsd: float | None
    parameters: int


@dataclass(frozen=True)
class ArmScore:
    """The folds of one arm together; the best fold first."""

    arm: str
    runs: tuple[TrainedRun, ...]

    @property
    def dsc(self) -> float:
        """Mean validation DSC over folds."""
        return _mean([run.dsc for run in self.runs])

    @property
    def nsd(self) -> float | None:
        """Mean validation NSD over folds; None if a fold has none."""
        known = [run.nsd for run in self.runs if run.nsd is not None]
        return _mean(known) if len(known) == len(self.runs) else None

    @property
    def order(self) -> tuple[float, float, int]:
        """Smallest for the best."""
        return -round(self.dsc, 4), -(self.nsd or 0.0), self.runs[0].parameters


def rank_runs(folder: Path) -> tuple[ArmScore, ...]:
    """Every arm below a folder, the best first.

    Args:
        folder: A study's folder, or one that holds the runs of ``covidseg train``.

    Raises:
        BundleError: If no finished training with a validation lies below it.
    """
    runs = [run for file in sorted(folder.rglob(BEST)) if (run := _read(file.parent)) is not None]
    if not runs:
        raise BundleError(
            f"{folder} holds no training that was validated; give the folder of a study or of runs of `covidseg train`."
        )
    arms: dict[str, list[TrainedRun]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    scores = [ArmScore(arm, tuple(sorted(members, key=lambda run: -run.dsc))) for arm, members in arms.items()]
    return tuple(sorted(scores, key=lambda score: score.order))


def table_lines(scores: Sequence[ArmScore]) -> list[str]:
    """The table for a terminal, the chosen one first."""
    width = max(len(score.arm) for score in scores)
    head = f"{'arm':<{width}}  folds  validation DSC  NSD    parameters"
    rows = [
        f"{score.arm:<{width}}  {len(score.runs):>5}  {score.dsc:>14.4f}  "
        f"{'–' if score.nsd is None else format(score.nsd, '.3f'):<5}  {score.runs[0].parameters:>10,}"
        for score in scores
    ]
    return [head, *rows]


def _read(folder: Path) -> TrainedRun | None:
    """A run as a candidate; None for one that no validation case has judged, such as a pre-training."""
    checkpoint = load_checkpoint(folder / BEST)
    config, score = checkpoint.config, checkpoint.progress.best_score
    if score is None or not config.data.validation:
        return None
    dsc, nsd = score, None
    if (folder / MEASURES).is_file():  # a study measures the last checkpoint at full resolution
        measures = json.loads((folder / MEASURES).read_text("utf-8"))
        judged = [measures[case] for case in config.data.validation if case in measures]
        if judged:
            dsc = _mean([one["dsc"] or 0.0 for one in judged])
            nsd = _mean([one["nsd"] or 0.0 for one in judged])
    network = build_network(config)
    arm = f"{_FOLD.sub('', config.name)}, {len(config.data.train)} cases"
    return TrainedRun(folder, arm, dsc, nsd, count_parameters(network))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
