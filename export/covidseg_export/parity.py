"""Proof that what is exported says what torch says, on real scans through the whole runtime.

The reference segments a scan once and its logits are kept, tile by tile. Every candidate then segments the same scan:
its logits are compared with those kept, its label map with the reference's and with the truth.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.errors import BundleError
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.metrics import dice
from covidseg_runtime.segmenter import Segmentation, Segmenter
from covidseg_runtime.volume import Volume

TILES_OF = "f32"  # the precision that all say they have, so that the runtime gives all the same tiles


@dataclass(frozen=True)
class ParityLimits:
    """What a precision may cost.

    A graph in float32 must agree with torch number by number. Half precision and int8 round on purpose, so their label
    maps are judged, and the mean logit difference, which a lost bias or a wrong weight moves and rounding does not.

    Attributes:
        f32_logit_difference: Largest |Δlogit| in float32.
        f32_flipped_share: Largest share of voxels with another label in float32.
        f16_dsc_change: Largest |ΔDSC| of the infection in float16.
        int8_dsc_change: Likewise in int8, and in bfloat16, which rounds as coarsely.
        f16_mean_logit_difference: Largest mean |Δlogit| in float16.
        int8_mean_logit_difference: Likewise in int8 and bfloat16.
    """

    f32_logit_difference: float = 1e-3
    f32_flipped_share: float = 1e-5
    f16_dsc_change: float = 0.001
    int8_dsc_change: float = 0.005
    f16_mean_logit_difference: float = 0.01
    int8_mean_logit_difference: float = 0.25

    def to_dict(self) -> dict[str, float]:
        """Plain values for bundle.json."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class ParityScan:
    """A scan on which engines are compared.

    Attributes:
        name: As in the report.
        volume: The CT.
        truth: (X, Y, Z) bool, infection on the CT's grid; None if nobody marked it.
    """

    name: str
    volume: Volume
    truth: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Parity:
    """How far an engine is from torch on one scan.

    Attributes:
        scan: Name of the scan.
        file: The bundle's file.
        engine: What ran it.
        precision: What it computed in.
        max_logit_difference: Largest |Δlogit| over all tiles and classes.
        mean_logit_difference: Mean |Δlogit|.
        voxels: Voxels of the scan.
        flipped_voxels: Those whose final label differs.
        infection_dice: DSC of the infection against torch's; None if neither found any.
        infection_ml: Infection found.
        volume_change_ml: Infection found, less torch's.
        dsc: DSC against the truth; None where nobody marked it.
        torch_dsc: Torch's DSC against the truth.
    """

    scan: str
    file: str
    engine: str
    precision: str
    max_logit_difference: float
    mean_logit_difference: float
    voxels: int
    flipped_voxels: int
    infection_dice: float | None
    infection_ml: float
    volume_change_ml: float
    dsc: float | None
    torch_dsc: float | None

    @property
    def dsc_change(self) -> float:
        """What the DSC against the truth changed by; without truth 1 − DSC against torch, which is no smaller."""
        if self.dsc is not None and self.torch_dsc is not None:
            return abs(self.dsc - self.torch_dsc)
        return 0.0 if self.infection_dice is None else 1.0 - self.infection_dice

    def faults(self, limits: ParityLimits) -> tuple[str, ...]:
        """What is outside the limits, in words; empty if nothing is."""
        if self.precision == "f32":
            checks = (
                ("a logit", self.max_logit_difference, limits.f32_logit_difference),
                ("the share of flipped voxels", self.flipped_voxels / self.voxels, limits.f32_flipped_share),
            )
        elif self.precision == "f16":
            checks = (
                ("DSC", self.dsc_change, limits.f16_dsc_change),
                ("the mean logit", self.mean_logit_difference, limits.f16_mean_logit_difference),
            )
        else:
            checks = (
                ("DSC", self.dsc_change, limits.int8_dsc_change),
                ("the mean logit", self.mean_logit_difference, limits.int8_mean_logit_difference),
            )
        # not (a <= b), so that a NaN fails
        return tuple(
            f"{what} differs by {by:.2e}, {most:.0e} is allowed" for what, by, most in checks if not by <= most
        )

    def refuses(self, limits: ParityLimits) -> bool:
        """Whether the file must not be written.

        bfloat16 is no file but a machine's rounding of the fp32 one: outside the limits the runtime does not choose it.
        """
        return self.precision != "bf16" and bool(self.faults(limits))

    def to_dict(self, limits: ParityLimits) -> dict[str, object]:
        """Plain values for bundle.json."""
        return {**asdict(self), "dsc_change": self.dsc_change, "passed": not self.faults(limits)}


@dataclass(frozen=True)
class Candidate:
    """An engine to compare.

    Attributes:
        file: Name of the file it runs.
        engine: The open engine.
    """

    file: str
    engine: Engine


class ParityCheck:
    """Torch's answer on one scan, and the comparison of others with it."""

    def __init__(self, bundle: ModelBundle, reference: Engine, scan: ParityScan) -> None:
        """Keep what is compared with; the reference takes tiles of any shape."""
        self._bundle, self._reference, self._scan = bundle, reference, scan
        self._answers: dict[bool, tuple[Segmentation, list[NDArray[np.float32]]]] = {}

    def compare(self, candidate: Candidate) -> Parity:
        """Segment the scan with a candidate and compare."""
        expected, tiles = self._answer(any_tile=candidate.engine.any_tile)
        comparer = _Comparer(candidate.engine, iter(tiles))
        found = Segmenter(self._bundle, comparer).segment(self._scan.volume)
        ours, theirs = found.labels == INFECTION, expected.labels == INFECTION
        truth = self._scan.truth
        return Parity(
            scan=self._scan.name,
            file=candidate.file,
            engine=candidate.engine.name,
            precision=candidate.engine.precision,
            max_logit_difference=comparer.largest,
            mean_logit_difference=comparer.total / comparer.count,
            voxels=found.labels.size,
            flipped_voxels=int(np.count_nonzero(found.labels != expected.labels)),
            infection_dice=float(dice(ours, theirs)) if ours.any() or theirs.any() else None,
            infection_ml=_infection_ml(found),
            volume_change_ml=round(_infection_ml(found) - _infection_ml(expected), 3),
            dsc=None if truth is None else float(dice(ours, truth)),
            torch_dsc=None if truth is None else float(dice(theirs, truth)),
        )

    def _answer(self, *, any_tile: bool) -> tuple[Segmentation, list[NDArray[np.float32]]]:
        """The reference's segmentation and the logits of its tiles, with the tiles that such an engine is given."""
        if any_tile not in self._answers:
            recorder = _Recorder(self._reference, any_tile=any_tile)
            self._answers[any_tile] = Segmenter(self._bundle, recorder).segment(self._scan.volume), recorder.tiles
        return self._answers[any_tile]


def require_parity(results: tuple[Parity, ...], limits: ParityLimits) -> None:
    """Refuse to go on when a file's answer is outside the limits.

    Raises:
        BundleError: Naming the first and what was measured.
    """
    for parity in results:
        if parity.refuses(limits):
            raise BundleError(
                f"{parity.file} on {parity.engine} ({parity.precision}) differs from torch on {parity.scan}: "
                f"{'; '.join(parity.faults(limits))}. Nothing was written; --force writes it and says so in the bundle."
            )


def _infection_ml(segmentation: Segmentation) -> float:
    return segmentation.measures.infection_volume_ml.whole or 0.0


class _Recorder:
    """Passes tiles on and keeps the logits."""

    def __init__(self, engine: Engine, *, any_tile: bool) -> None:
        self.name, self.precision, self.batch = engine.name, TILES_OF, engine.batch
        self.any_tile = any_tile
        self.tiles: list[NDArray[np.float32]] = []
        self._engine = engine

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = self._engine.predict(tiles)
        self.tiles.extend(logits)
        return logits

    def close(self) -> None:
        self._engine.close()


class _Comparer:
    """Passes tiles on and compares the logits with those kept."""

    def __init__(self, engine: Engine, expected: Iterator[NDArray[np.float32]]) -> None:
        self.name, self.precision, self.batch = engine.name, TILES_OF, engine.batch
        self.any_tile = engine.any_tile
        self.largest, self.total, self.count = 0.0, 0.0, 0
        self._engine, self._expected = engine, expected

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = self._engine.predict(tiles)
        for one in logits:  # the reference may have had other batches
            self._compare(one, next(self._expected))
        return logits

    def _compare(self, logits: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        if logits.shape != expected.shape:
            raise BundleError(f"{self.name} gives logits of shape {logits.shape}, torch {expected.shape}.")
        difference = np.abs(logits - expected)
        self.largest = float(np.maximum(self.largest, difference.max()))  # a NaN stays one
        self.total += float(difference.sum(dtype=np.float64))
        self.count += difference.size

    def close(self) -> None:
        self._engine.close()


def parity_in_a_line(parity: Parity) -> str:
    """One comparison for a terminal."""
    change = "" if parity.dsc is None else f", DSC {parity.dsc:.4f} (torch {parity.torch_dsc:.4f})"
    return (
        f"{parity.scan}: {parity.file} on {parity.engine} {parity.precision}: logits differ by "
        f"{parity.max_logit_difference:.1e} at most and {parity.mean_logit_difference:.1e} on average, "
        f"{parity.flipped_voxels} of {parity.voxels} voxels flipped{change}, {parity.volume_change_ml:+.2f} mL"
    )
