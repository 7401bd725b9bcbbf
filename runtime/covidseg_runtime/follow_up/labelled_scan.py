"""A scan with its label map: one of the two that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.report import describe_scan
from covidseg_runtime.volume import MODEL_ORIENTATION, Volume, to_orientation


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A CT and what was segmented in it.

    Attributes:
        volume: The CT in HU, (X, Y, Z) in any orientation.
        labels: (X, Y, Z) uint8 on the same grid: 0 background, 1 left lung, 2 right lung, 3 infection.
        name: What messages call it: a file's name, or a series' UID.
        report: What `build_report` gave for it; None if there is none.
        acquisition_date: Day of the acquisition; None if unknown.

    Raises:
        VolumeError: If labels and CT differ in shape.
    """

    volume: Volume
    labels: NDArray[np.uint8]
    name: str
    report: Mapping[str, Any] | None = None
    acquisition_date: date | None = None

    def __post_init__(self) -> None:
        """Refuse labels of another grid."""
        if self.labels.shape != self.volume.shape:
            raise VolumeError(
                f"The labels of {self.name} have shape {self.labels.shape}, its CT has {self.volume.shape}; "
                "give the label map of this scan."
            )

    @property
    def turned(self) -> Volume:
        """The CT as (Z, Y, X), orientation SPL; a view."""
        return to_orientation(self.volume, MODEL_ORIENTATION)

    @property
    def turned_labels(self) -> Volume:
        """The labels as (Z, Y, X), orientation SPL; a view."""
        return to_orientation(Volume(self.labels, self.volume.affine), MODEL_ORIENTATION)

    def describe(self) -> dict[str, Any]:
        """What the comparison says about the scan."""
        acquired = None if self.acquisition_date is None else self.acquisition_date.isoformat()
        return {**describe_scan(self.name, self.volume), "acquisition_date": acquired}
