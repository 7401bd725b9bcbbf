"""A probability that means what it says: one temperature, fitted on the cases that validated the training."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.calibration import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE
from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.intensity import clip_and_scale_hounsfield
from covidseg_runtime.lung_box import find_lung_box
from covidseg_runtime.resampling import GridPair, highest_class, to_model_grid, to_model_hu
from covidseg_runtime.sliding_window import fit_to_engine, predict_tiled
from covidseg_runtime.volume import to_orientation
from covidseg_train.datasets.dataset import CaseVolumes

MOST_VOXELS = 200_000  # of a case
BINS = 15
SEED = 2020


@dataclass(frozen=True, eq=False)
class LungVoxels:
    """Some voxels of one case's lungs, on the model's grid.

    Attributes:
        case: Case name.
        logits: (C, n) float32; infection is the last class.
        infected: (n,) the reference.
    """

    case: str
    logits: NDArray[np.float32]
    infected: NDArray[np.bool_]

    def with_offset(self, offset: float) -> "LungVoxels":
        """The same with ``offset`` added to the logit of infection."""
        logits = self.logits.copy()
        logits[-1] += np.float32(offset)
        return LungVoxels(self.case, logits, self.infected)

    def log_odds(self, temperature: float) -> NDArray[np.float32]:
        """Logarithm (n,) of the odds of infection against the rest in softmax(logits / temperature)."""
        logits = self.logits / np.float32(temperature)
        odds: NDArray[np.float32] = logits[-1] - np.logaddexp.reduce(logits[:-1], axis=0)
        return odds


def calibration_problem(bundle: ModelBundle, validation: Sequence[str]) -> str | None:
    """Why no temperature can be fitted, in words; None where one can."""
    if bundle.tile_plan.average != "logits":
        return "the tiles' probabilities are averaged, not their logits"
    if not bundle.tells_lungs_apart:
        return "the network labels no lungs"
    if not validation:
        return "no case validated the training without being learned from"
    return None


def draw_lung_voxels(bundle: ModelBundle, engine: Engine, cases: Iterable[tuple[str, CaseVolumes]]) -> list[LungVoxels]:
    """Predict cases as the runtime does and draw voxels of their lungs.

    Lungs are what the network calls lung or infection, and what the reference calls infection, in the box that the
    runtime segments. At most 200,000 voxels of a case are drawn, each alike, the same ones every time.

    Args:
        bundle: Its network labels lungs, and its tiles' logits are averaged.
        engine: Its network.
        cases: Names, scans and references.

    Returns:
        One entry a case, but for cases without any such voxel.
    """
    drawn = []
    for index, (case, volumes) in enumerate(cases):
        logits, infected = _predict_lungs(bundle, engine, volumes)
        count = min(len(infected), MOST_VOXELS)
        chosen = np.random.default_rng((SEED, index)).choice(len(infected), count, replace=False)
        if count:
            drawn.append(LungVoxels(case, logits[:, chosen], infected[chosen]))
    return drawn


def _predict_lungs(
    bundle: ModelBundle, engine: Engine, volumes: CaseVolumes
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logits (C, n) and reference (n,) of every voxel of the lungs on the model's grid."""
    preprocessing = bundle.preprocessing
    ct, lesion = (to_orientation(volume, preprocessing.orientation) for volume in (volumes.ct, volumes.lesion))
    box = find_lung_box(ct.voxels, ct.spacing_mm)
    grids = GridPair.for_spacing(box.shape, ct.spacing_mm, preprocessing.spacing_mm)
    reference = to_model_grid(lesion.voxels[box.slices], grids) >= 0.5
    plan = fit_to_engine(bundle.tile_plan, engine, grids.model_shape)
    prepare = partial(clip_and_scale_hounsfield, scaling=preprocessing.scaling)
    logits, infected = [], []
    for slab in predict_tiled(engine, to_model_hu(ct.voxels[box.slices], grids), plan, prepare):
        marked = reference[slab.start : slab.start + slab.logits.shape[1]]
        lungs = marked | (highest_class(slab.logits) > 0)
        logits.append(slab.logits[:, lungs])
        infected.append(marked[lungs])
    return np.concatenate(logits, axis=1), np.concatenate(infected)


def describe_calibration(validation: Sequence[LungVoxels], held_out: Sequence[LungVoxels]) -> dict[str, Any]:
    """The section ``calibration`` of bundle.json: the temperature, and what it changes.

    Args:
        validation: What it is fitted on; some of it infected.
        held_out: What it is only measured on; may be empty.
    """
    temperature = fit_temperature(validation)
    return {
        "temperature": temperature,
        **_before_and_after(validation, temperature),
        "held_out": _before_and_after(held_out, temperature) if held_out else None,
    }


def calibration_in_a_line(section: Mapping[str, Any]) -> str:
    """A calibration for a terminal."""
    parts = [f"on {len(section['cases'])} cases that {chosen_by(section)} {_changes(section)}"]
    if section["held_out"] is not None:
        parts.append(f"on {len(section['held_out']['cases'])} held-out cases {_changes(section['held_out'])}")
    return f"calibration: temperature {section['temperature']:g}; {'; '.join(parts)}"


def calibration_lines(section: Mapping[str, Any] | None) -> list[str]:
    """What the model card says of a calibration."""
    if section is None:
        return ["The probability of infection is not calibrated."]
    fitted = (
        f"The probability of infection has temperature {section['temperature']:g}, fitted on the "
        f"{len(section['cases'])} cases that {chosen_by(section)}. In voxels of their lungs: {_changes(section)}."
    )
    if section["held_out"] is None:
        return [fitted, "No other case was left to measure that on."]
    return [fitted, f"On {len(section['held_out']['cases'])} held-out cases: {_changes(section['held_out'])}."]


def chosen_by(section: Mapping[str, Any]) -> str:
    """Whose the cases of a section ``decision`` or ``calibration`` are, to follow on 'cases that'."""
    folds = section.get("folds", 0)
    return f"{folds} other folds of the recipe held out" if folds else "validated the training"


def _changes(measured: Mapping[str, Any]) -> str:
    nll, ece = measured["nll"], measured["ece"]
    return f"NLL {nll['before']:.4f} to {nll['after']:.4f}, ECE {ece['before']:.4f} to {ece['after']:.4f}"


def _before_and_after(cases: Sequence[LungVoxels], temperature: float) -> dict[str, Any]:
    steps = {"before": 1.0, "after": temperature}
    return {
        "cases": [one.case for one in cases],
        "voxels": sum(len(one.infected) for one in cases),
        "nll": {step: round(mean_nll(cases, value), 5) for step, value in steps.items()},
        "ece": {step: round(mean_calibration_error(cases, value), 5) for step, value in steps.items()},
    }


def fit_temperature(cases: Sequence[LungVoxels]) -> float:
    """The temperature of the lowest `mean_nll`, from 0.05 to 20, to four decimals.

    Temperature scaling is of Guo et al. (On Calibration of Modern Neural Networks, ICML 2017).
    """
    bounds = (math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE))
    found = minimize_scalar(
        lambda logarithm: mean_nll(cases, math.exp(logarithm)), bounds=bounds, method="bounded", options={"xatol": 1e-4}
    )
    return round(math.exp(found.x), 4)


def mean_nll(cases: Sequence[LungVoxels], temperature: float) -> float:
    """Negative log likelihood of infection against the rest, in nats a voxel; every case has the same weight."""
    return float(np.mean([_nll(one, temperature) for one in cases]))


def _nll(one: LungVoxels, temperature: float) -> float:
    against = np.where(one.infected, -1, 1) * one.log_odds(temperature)
    return float(np.logaddexp(0.0, against).mean(dtype=np.float64))


def mean_calibration_error(cases: Sequence[LungVoxels], temperature: float) -> float:
    """`expected_calibration_error` of all cases' voxels together; every case has the same weight."""
    log_odds = np.concatenate([one.log_odds(temperature) for one in cases]).astype(np.float64)
    probability = np.exp(-np.logaddexp(0.0, -log_odds))
    infected = np.concatenate([one.infected for one in cases])
    weights = np.concatenate([np.full(len(one.infected), 1 / len(one.infected)) for one in cases]) / len(cases)
    return expected_calibration_error(probability, infected, weights)


def expected_calibration_error(
    probability: NDArray[np.float64], infected: NDArray[np.bool_], weights: NDArray[np.float64]
) -> float:
    """ECE = Σ_b |Σ_{i in bin b} w_i (y_i − p_i)|, with 15 bins of the same width over the probability of infection.

    In each bin that is its weight, times the distance of the share of infected voxels from the mean probability, as
    Naeini et al. (Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015) have it for two classes.

    Args:
        probability: (n,) of infection, p; on a border of two bins it counts to the upper one.
        infected: (n,) the reference, y.
        weights: (n,) w; their sum is 1.
    """
    bins = np.minimum((probability * BINS).astype(np.intp), BINS - 1)
    return float(np.abs(np.bincount(bins, weights * (infected - probability), BINS)).sum())
