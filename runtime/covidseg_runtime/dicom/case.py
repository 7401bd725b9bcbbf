"""What every object of one result is made from, and what they have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from covidseg_runtime.dicom.identity import MANUFACTURER, Identity, ascii_text
from covidseg_runtime.dicom.patient_study import copy_patient_and_study
from covidseg_runtime.dicom.source_series import SourceSeries
from covidseg_runtime.measures import INFECTION, Measures
from covidseg_runtime.preview import render_preview
from covidseg_runtime.spooling import planes
from covidseg_runtime.volume import Volume

SERIES_NUMBERS = {"seg": 901, "sr": 902, "sc": 903, "pdf": 904}
SERIES_DESCRIPTIONS = {
    "seg": "AI COVID-19 lesion SEG - RESEARCH USE ONLY",
    "sr": "AI COVID-19 lesion measures - RESEARCH USE ONLY",
    "sc": "AI COVID-19 lesion overlay - RESEARCH USE ONLY",
    "pdf": "AI COVID-19 lesion report - RESEARCH USE ONLY",
}


@dataclass(frozen=True, eq=False)
class Case:
    """One segmented series.

    Attributes:
        volume: The scan; voxels[i, j, k] are column i, row j of slice k.
        labels: (X, Y, Z) uint8 on its grid.
        measures: Of the labels.
        report: What `build_report` gave.
        source: The series.
        bare: Headers that say where its slices lie, without patient and study.
        identity: UIDs, equipment and times.
    """

    volume: Volume
    labels: NDArray[np.uint8]
    measures: Measures
    report: Mapping[str, Any]
    source: SourceSeries
    bare: Sequence[Dataset]
    identity: Identity

    @cached_property
    def infected_voxels(self) -> int:
        """How many voxels are labelled as infection."""
        return sum(int(np.count_nonzero(plane == INFECTION)) for plane in planes(self.labels.T))

    @cached_property
    def preview(self) -> bytes:
        """The overlay as PNG, made once for all that show it."""
        return render_preview(self.volume, self.labels)

    @property
    def volume_range(self) -> Mapping[str, Any] | None:
        """low_ml, high_ml, cases and share of the infection's volume, if the report has them."""
        found: Mapping[str, Any] | None = self.report.get("uncertainty", {}).get("infection_volume_ml")
        return found

    @property
    def range_sentence(self) -> str | None:
        """What that range means."""
        if (found := self.volume_range) is None:
            return None
        return (
            f"The infection's volume may lie from {found['low_ml']:g} to {found['high_ml']:g} mL: so far off was the "
            f"model on {100 * found['share']:.0f} % of {found['cases']} cases that it did not learn from."
        )

    @property
    def texts(self) -> tuple[str, str, tuple[str, ...]]:
        """Notice, limits and warnings, in ASCII."""
        notice, limits = ascii_text(self.report["notice"]), ascii_text(self.report["limits"])
        return notice, limits, tuple(ascii_text(warning) for warning in self.report["warnings"])


def general_attributes(case: Case, kind: str, variant: str = "") -> dict[str, Any]:
    """Arguments that every class of highdicom takes: series, instance, equipment, date.

    Args:
        case: The result.
        kind: Of the object.
        variant: What tells two objects of this kind and result apart, such as whether lungs are in it.
    """
    identity = case.identity
    return {
        "series_instance_uid": identity.series_uid(kind),
        "series_number": SERIES_NUMBERS[kind],
        "series_description": SERIES_DESCRIPTIONS[kind],
        "sop_instance_uid": identity.instance_uid(kind, variant),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": identity.model_name,
        "software_versions": identity.software_versions,
        "device_serial_number": identity.model_sha256,
        "content_date": identity.when.date(),
        "content_time": identity.when.time(),
    }


def complete(case: Case, dataset: Dataset) -> None:
    """Give an object the patient and the study of the source, the equipment, and times that its maker chose himself."""
    header, identity = case.source.headers[0], case.identity
    copy_patient_and_study(header, dataset)
    dataset.ContributingEquipmentSequence = identity.contributing_equipment(header)
    dataset.InstanceCreationDate = dataset.SeriesDate = dataset.ContentDate = identity.when.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.SeriesTime = dataset.ContentTime = identity.when.strftime("%H%M%S")
