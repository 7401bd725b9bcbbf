"""Who made an object, from what, and when: its UIDs, its equipment, its times.

UIDs are the standard's own kind, 2.25 and a UUID, and follow from what the object is made of: the same series, model,
version of covidseg and result give the same UIDs on every machine and in every run, so that an archive which is sent
an object twice keeps it once. An instance's UID follows from the result as well: two settings that label differently
make two instances of one series, never one UID for two contents.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code

from covidseg_runtime.dicom import codes
from covidseg_runtime.dicom.patient_study import copy_elements
from covidseg_runtime.dicom.source_series import SourceSeries
from covidseg_runtime.spooling import planes

MANUFACTURER = "covidseg"
LONGEST_NAME = 64  # characters of a DICOM long string (LO)

_NAMESPACE = uuid.UUID("8f2c5d0e-6b1a-5c39-9d74-3a0be1c7f25d")
_ACQUISITION = (
    "Manufacturer",
    "InstitutionName",
    "StationName",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)
_PARAMETERS = {"name": "engine", "precision": "precision", "quality": "quality", "step": "tile step"}
_ASCII_OF = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "×": "x", "…": "...", "’": "'", "∪": "and", "≥": ">=", "≤": "<="}
)


@dataclass(frozen=True)
class Identity:
    """What the UIDs, the equipment and the times of one run's objects follow from.

    Attributes:
        source_series_uid: SeriesInstanceUID of the series that was segmented.
        model_name: Name of the bundle, ASCII.
        model_version: Its version, ASCII.
        model_sha256: One sha256 of all its files; it changes with any of them.
        software_version: Version of covidseg.
        parameters: How the network was run, name -> value, ASCII.
        result_sha256: Of the labels, the instances they lie on, the parameters and the warnings.
        when: Date and time that the objects tell; what its clock shows is written, without a time zone.
    """

    source_series_uid: str
    model_name: str
    model_version: str
    model_sha256: str
    software_version: str
    parameters: Mapping[str, str]
    result_sha256: str
    when: datetime

    @classmethod
    def of(cls, source: SourceSeries, report: Mapping[str, Any], labels: NDArray[np.uint8], when: datetime) -> Identity:
        """The identity of one result.

        Args:
            source: The series that was segmented.
            report: What `build_report` gave.
            labels: (X, Y, Z) on the series' own grid.
            when: Date and time for the objects; fractions of a second are cut off.
        """
        model, engine = report["model"], report["engine"]
        parameters = {meaning: ascii_text(str(engine[name])) for name, meaning in _PARAMETERS.items() if name in engine}
        return cls(
            source_series_uid=source.series_uid,
            model_name=ascii_text(model["name"])[:LONGEST_NAME],
            model_version=ascii_text(model["version"])[:LONGEST_NAME],
            model_sha256=model_sha256(model["files"]),
            software_version=report["software"]["version"],
            parameters=parameters,
            result_sha256=_result_sha256(source, labels, {"parameters": parameters, "warnings": report["warnings"]}),
            when=when.replace(microsecond=0),
        )

    @property
    def device_uid(self) -> str:
        """UID of the model as a device: another one as soon as any file of the model is."""
        return _uid("device", self.model_sha256)

    def series_uid(self, kind: str) -> str:
        """SeriesInstanceUID of the objects of one kind ("seg", "sr", ...)."""
        return _uid("series", kind, self.source_series_uid, self.model_sha256, self.software_version)

    def instance_uid(self, kind: str, variant: str = "") -> str:
        """SOPInstanceUID of the object of one kind; `variant` tells apart what one result can be told by."""
        return self.part_uid("instance", kind, variant)

    def part_uid(self, *names: str) -> str:
        """UID of something within the result, such as the tracking UID of a segment."""
        return _uid(*names, self.source_series_uid, self.model_sha256, self.software_version, self.result_sha256)

    @property
    def software_versions(self) -> list[str]:
        """SoftwareVersions: of covidseg and of the model."""
        return [f"covidseg {self.software_version}"[:LONGEST_NAME], f"model {self.model_version}"[:LONGEST_NAME]]

    def contributing_equipment(self, header: Dataset) -> list[Dataset]:
        """Items of ContributingEquipmentSequence: the scanner of the source, and the model that made the result."""
        scanner, model = Dataset(), Dataset()
        model.Manufacturer = MANUFACTURER
        model.ManufacturerModelName = self.model_name
        model.DeviceSerialNumber = self.model_sha256
        model.SoftwareVersions = self.software_versions
        model.DeviceUID = self.device_uid
        model.ContributionDateTime = self.when.strftime("%Y%m%d%H%M%S")
        model.ContributionDescription = "AI segmentation of lung opacity, research use only"
        model.PurposeOfReferenceCodeSequence = [code_item(codes.PROCESSING_EQUIPMENT)]
        copy_elements(header, scanner, _ACQUISITION)
        if "Manufacturer" not in scanner:
            return [model]
        scanner.PurposeOfReferenceCodeSequence = [code_item(codes.ACQUISITION_EQUIPMENT)]
        return [scanner, model]


def model_sha256(files: Mapping[str, str]) -> str:
    """One sha256 of a bundle: of the sorted lines "sha256 name" of its files."""
    lines = sorted(f"{sha256} {name}\n" for name, sha256 in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def code_item(code: Code) -> Dataset:
    """A code as the item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def ascii_text(text: str) -> str:
    """Text in ASCII, which every character set of DICOM holds: the source's own is kept for the patient's name."""
    plain = unicodedata.normalize("NFKD", text.translate(_ASCII_OF))
    return plain.encode("ascii", "ignore").decode()


def _result_sha256(source: SourceSeries, labels: NDArray[np.uint8], words: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode())
    for header in source.headers:
        digest.update(f"{header.SOPInstanceUID}\n".encode())
    digest.update(f"{source.frame_of_slice} {labels.shape}\n".encode())
    for plane in planes(labels.T):
        digest.update(np.ascontiguousarray(plane, dtype=np.uint8).data)
    return digest.hexdigest()


def _uid(*parts: str) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(parts)).int}"
