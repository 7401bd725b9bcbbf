"""Proof that an exported model says what torch says, on a real scan through the runtime's own path."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.errors import BundleError
from covidseg_runtime.intensity import HounsfieldScaling, clip_and_scale_hounsfield
from covidseg_runtime.metrics import dice
from covidseg_runtime.sliding_window import LogitSlab, predict_tiled
from covidseg_runtime.tiling import TilePlan

LARGEST_LOGIT_DIFFERENCE = 1e-3
LARGEST_FLIPPED_SHARE = 1e-5
INFECTION_CLASS = 2


@dataclass(frozen=True)
class Parity:
    """How far an engine is from the reference on one scan.

    Attributes:
        engine: Name of the engine.
        precision: What it computed in.
        max_logit_difference: Largest |Δlogit| over all voxels and classes, after tiling.
        mean_logit_difference: Mean |Δlogit|.
        voxels: Voxels compared.
        flipped_voxels: Voxels whose label differs.
        infection_dice: Dice of the infection between engine and reference; None if neither found any.
    """

    engine: str
    precision: str
    max_logit_difference: float
    mean_logit_difference: float
    voxels: int
    flipped_voxels: int
    infection_dice: float | None

    @property
    def holds(self) -> bool:
        """Whether |Δlogit| ≤ 1e-3 and at most one voxel in 100,000 flipped."""
        flipped_share = self.flipped_voxels / self.voxels
        return self.max_logit_difference <= LARGEST_LOGIT_DIFFERENCE and flipped_share <= LARGEST_FLIPPED_SHARE

    def to_dict(self) -> dict[str, object]:
        """Plain values for bundle.json."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class ParityScan:
    """The scan on which engines are compared.

    Attributes:
        hu: (Z, Y, X) int16 on the model's grid.
        scaling: How the network sees it.
        plan: Its tiles.
    """

    hu: NDArray[np.int16]
    scaling: HounsfieldScaling
    plan: TilePlan


def check_parity(reference: Engine, candidates: Mapping[str, Engine], scan: ParityScan) -> dict[str, Parity]:
    """Compare engines with a reference, slab by slab.

    Args:
        reference: The torch network.
        candidates: Engines by role.
        scan: A real scan.

    Returns:
        One result for each candidate.
    """
    reference_slabs = list(_slabs(reference, scan))
    return {role: _compare(engine, reference_slabs, scan) for role, engine in candidates.items()}


def require_parity(results: Mapping[str, Parity]) -> None:
    """Refuse to go on when an engine differs too much.

    Raises:
        BundleError: Naming the first engine outside the limits and what was measured.
    """
    for parity in results.values():
        if not parity.holds:
            raise BundleError(
                f"{parity.engine} ({parity.precision}) differs from torch by {parity.max_logit_difference:.2e} in a "
                f"logit and in {parity.flipped_voxels} of {parity.voxels} labels; {LARGEST_LOGIT_DIFFERENCE:.0e} and "
                "one in 100,000 are allowed. Nothing was written."
            )


def _slabs(engine: Engine, scan: ParityScan) -> list[LogitSlab]:
    return list(predict_tiled(engine, scan.hu, scan.plan, lambda hu: clip_and_scale_hounsfield(hu, scan.scaling)))


def _compare(engine: Engine, reference: list[LogitSlab], scan: ParityScan) -> Parity:
    largest, total, flipped, voxels, infected = 0.0, 0.0, 0, 0, []
    for ours, theirs in zip(_slabs(engine, scan), reference, strict=True):
        difference = np.abs(ours.logits - theirs.logits)
        largest = max(largest, float(difference.max()))
        total += float(difference.sum(dtype=np.float64))
        labels, expected = ours.logits.argmax(axis=0), theirs.logits.argmax(axis=0)
        flipped += int(np.count_nonzero(labels != expected))
        voxels += labels.size
        infected.append((labels == INFECTION_CLASS, expected == INFECTION_CLASS))
    mine, truth = (np.concatenate(masks) for masks in zip(*infected, strict=True))
    classes = reference[0].logits.shape[0]
    return Parity(
        engine=engine.name,
        precision=engine.precision,
        max_logit_difference=largest,
        mean_logit_difference=total / (voxels * classes),
        voxels=voxels,
        flipped_voxels=flipped,
        infection_dice=float(dice(mine, truth)) if mine.any() or truth.any() else None,
    )
