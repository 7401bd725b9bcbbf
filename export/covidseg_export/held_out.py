"""What the exported model measures on the cases the training never read, through the whole runtime."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from covidseg_runtime.measures import INFECTION
from covidseg_runtime.metrics import compute_surface_distances, dice, normalised_surface_dice
from covidseg_runtime.segmenter import Segmenter
from covidseg_train.datasets.dataset import Dataset, find_case

INFECTION_TOLERANCE_MM = 3.0


@dataclass(frozen=True)
class HeldOutResult:
    """Infection of one held-out case on the scan's own grid.

    Attributes:
        case: Case name.
        patient: Cases of one patient share it.
        dsc: Dice similarity coefficient.
        nsd_3mm: Normalised surface Dice at 3 mm.
        predicted_ml: Infection volume of the model.
        reference_ml: Infection volume of the reference mask.
    """

    case: str
    patient: str
    dsc: float
    nsd_3mm: float
    predicted_ml: float
    reference_ml: float

    def to_dict(self) -> dict[str, object]:
        """Plain values for bundle.json."""
        return asdict(self)


def measure_held_out(segmenter: Segmenter, dataset: Dataset, root: Path, cases: Sequence[str]) -> list[HeldOutResult]:
    """Segment and score cases.

    Raises:
        VolumeError: If a case is not below ``root``.
    """
    return [_measure(segmenter, dataset, root, name) for name in cases]


def _measure(segmenter: Segmenter, dataset: Dataset, root: Path, name: str) -> HeldOutResult:
    files = find_case(dataset, root, name)
    volumes = dataset.read(files)
    scan, reference = volumes.ct, volumes.lesion.voxels > 0
    predicted = segmenter.segment(scan).labels == INFECTION
    voxel_ml = float(np.prod(scan.spacing_mm)) / 1000.0
    distances = compute_surface_distances(predicted, reference, scan.spacing_mm)
    return HeldOutResult(
        case=name,
        patient=files.patient,
        dsc=round(dice(predicted, reference), 4),
        nsd_3mm=round(normalised_surface_dice(distances, INFECTION_TOLERANCE_MM), 4),
        predicted_ml=round(float(predicted.sum()) * voxel_ml, 1),
        reference_ml=round(float(reference.sum()) * voxel_ml, 1),
    )
