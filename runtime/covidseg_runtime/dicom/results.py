"""From a segmented series to the objects that a PACS stores beside it.

Each kind is a series of its own in the source's study: SEG 901, SR 902, SC 903, encapsulated PDF 904.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmwrite

from covidseg_runtime.dicom.case import Case
from covidseg_runtime.dicom.encapsulated_pdf import make_encapsulated_pdf
from covidseg_runtime.dicom.identity import Identity
from covidseg_runtime.dicom.secondary_capture import make_secondary_capture
from covidseg_runtime.dicom.segmentation_object import make_segmentation_object
from covidseg_runtime.dicom.source_frames import bare_headers, check_geometry, source_frames
from covidseg_runtime.dicom.source_series import SourceSeries
from covidseg_runtime.dicom.structured_report import make_structured_report
from covidseg_runtime.errors import SettingsError, VolumeError
from covidseg_runtime.segmenter import Segmentation
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import write_bytes_atomic

FILE_NAMES = {"seg": "seg.dcm", "sr": "sr.dcm", "sc": "sc.dcm", "pdf": "report.pdf.dcm"}


@dataclass(frozen=True)
class WantedObjects:
    """Which objects to make.

    Attributes:
        kinds: Of "seg" (segmentation), "sr" (structured report), "sc" (picture) and "pdf" (page for people).
        lung_segments: Add the lungs to the segmentation, left and right, without the infection in them.

    Raises:
        SettingsError: If a kind is unknown or none is given.
    """

    kinds: tuple[str, ...] = ("seg", "sr", "sc")
    lung_segments: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        unknown = [kind for kind in self.kinds if kind not in FILE_NAMES]
        if unknown or not self.kinds:
            raise SettingsError(
                f"DICOM objects {list(self.kinds)} were asked for; give at least one of {', '.join(FILE_NAMES)}."
            )


DEFAULT_OBJECTS = WantedObjects()


@dataclass(frozen=True)
class ResultObject:
    """One DICOM object, ready to be written or sent.

    Attributes:
        kind: "seg", "sr", "sc" or "pdf".
        sop_class_uid: Its SOP class.
        sop_instance_uid: Its own UID.
        content: The bytes of the file (part 10, explicit VR little endian).
    """

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    content: bytes

    @property
    def file_name(self) -> str:
        """Name of its file in the folder of results."""
        return FILE_NAMES[self.kind]


def make_results(
    volume: Volume,
    segmentation: Segmentation,
    report: Mapping[str, Any],
    source: SourceSeries,
    wanted: WantedObjects = DEFAULT_OBJECTS,
    *,
    when: datetime | None = None,
) -> tuple[ResultObject, ...]:
    """Make the DICOM objects of one result. The given headers are not changed.

    UIDs follow from the series, the model, covidseg's version and the result; with an equal `when` the bytes do, too.
    Without infection there is no segmentation, and the structured report says 0 mL.

    Args:
        volume: The scan as it was read from the series: voxels[i, j, k] are column i, row j of slice k.
        segmentation: Its result, on the volume's own grid.
        report: What `build_report` gave for it.
        source: The series.
        wanted: Which objects.
        when: Date and time that the objects tell as their own; None is now. No time zone is written.

    Raises:
        VolumeError: If the volume does not lie on the series' own slices (resampled, tilt undone), the labels have
            another shape, or the series has no FrameOfReferenceUID.
    """
    if segmentation.labels.shape != volume.shape:
        raise VolumeError(f"The labels have shape {segmentation.labels.shape}, the scan {volume.shape}.")
    frames = source_frames(source)
    check_geometry(volume, source, frames)
    labels = segmentation.labels.astype(np.uint8, copy=False)
    case = Case(
        volume=volume,
        labels=labels,
        measures=segmentation.measures,
        report=report,
        source=source,
        bare=bare_headers(source, frames),
        identity=Identity.of(source, report, labels, datetime.now() if when is None else when),
    )
    return tuple(_encode(kind, dataset) for kind, dataset in _make(case, wanted))


def write_results(folder: Path, results: Sequence[ResultObject]) -> tuple[Path, ...]:
    """Write each object as a file into a folder that exists, whole or not at all; files of the same name are replaced.

    Give each result a folder of its own: a segmentation of an earlier one stays where the new one has none.

    Returns:
        The paths, in the order of `results`.

    Raises:
        OutputError: If the folder is missing, read-only or full.
    """
    paths = []
    for result in results:
        path = folder / result.file_name
        write_bytes_atomic(path, result.content)
        paths.append(path)
    return tuple(paths)


def _make(case: Case, wanted: WantedObjects) -> Iterator[tuple[str, Dataset]]:
    """The objects in one order, whatever the order they were asked for."""
    segmentation = None
    if "seg" in wanted.kinds and case.infected_voxels:
        segmentation = make_segmentation_object(case, with_lungs=wanted.lung_segments)
        yield "seg", segmentation
    if "sr" in wanted.kinds:
        yield "sr", make_structured_report(case, segmentation)
    if "sc" in wanted.kinds:
        yield "sc", make_secondary_capture(case)
    if "pdf" in wanted.kinds:
        yield "pdf", make_encapsulated_pdf(case)


def _encode(kind: str, dataset: Dataset) -> ResultObject:
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return ResultObject(kind, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), buffer.getvalue())
