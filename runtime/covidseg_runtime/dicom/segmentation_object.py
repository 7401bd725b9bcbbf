"""The label map as a DICOM Segmentation: BINARY, one segment of infection, on the source's own slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset

from covidseg_runtime.dicom import codes
from covidseg_runtime.dicom.case import Case, complete, general_attributes
from covidseg_runtime.dicom.identity import MANUFACTURER, code_item
from covidseg_runtime.measures import INFECTION, LEFT_LUNG, RIGHT_LUNG
from covidseg_runtime.spooling import planes

# Segment 1 is the infection whatever else there is.
INFECTION_SEGMENT = 1
_LUNGS = (LEFT_LUNG, RIGHT_LUNG)
_SEGMENT_LABELS = {
    INFECTION: "Infection (lung opacity)",
    LEFT_LUNG: "Left lung without infection",
    RIGHT_LUNG: "Right lung without infection",
}
_COLOURS = {INFECTION: (255, 50, 40), LEFT_LUNG: (60, 140, 255), RIGHT_LUNG: (60, 220, 120)}
_SIDES = {LEFT_LUNG: codes.LEFT, RIGHT_LUNG: codes.RIGHT}


def make_segmentation_object(case: Case, *, with_lungs: bool = False) -> Dataset:
    """A Segmentation of the infection; frames without it are left out.

    Args:
        case: A result with at least one infected voxel.
        with_lungs: Add what is labelled as lung, without the infection in it, as segments left and right.
    """
    labels = [INFECTION, *(_labelled(case.labels, _LUNGS) if with_lungs else ())]
    dataset = Segmentation(
        source_images=case.bare,
        pixel_array=_segment_numbers(case.labels, labels),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(case, number, label) for number, label in enumerate(labels, 1)],
        omit_empty_frames=True,
        content_label="COVIDSEG",
        content_description="AI segmentation of lung opacity, research use only",
        **general_attributes(case, "seg", variant=" ".join(map(str, labels))),
    )
    dataset.ContentCreatorName = ""
    _organise(dataset, case.identity.part_uid("dimensions"))
    _name_source_frames(dataset, case.source.frame_of_slice)
    complete(case, dataset)
    return dataset


def _labelled(labels: NDArray[np.uint8], wanted: Sequence[int]) -> tuple[int, ...]:
    """Those of `wanted` that any voxel has: an empty segment makes some viewers hang."""
    counts = np.zeros(256, np.int64)
    for plane in planes(labels.T):
        counts += np.bincount(plane.ravel(), minlength=256)
    return tuple(label for label in wanted if counts[label])


def _segment_numbers(labels: NDArray[np.uint8], segments: Sequence[int]) -> NDArray[np.uint8]:
    """(slices, rows, columns): number of each voxel's segment, 0 for none."""
    number_of_label = np.zeros(256, np.uint8)
    number_of_label[list(segments)] = np.arange(1, len(segments) + 1)
    return number_of_label[labels.T]


def _describe(case: Case, number: int, label: int) -> SegmentDescription:
    identity = case.identity
    is_infection = label == INFECTION
    algorithm = AlgorithmIdentificationSequence(
        name=identity.model_name,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        version=identity.model_version,
        source=MANUFACTURER,
        parameters=dict(identity.parameters),
    )
    described = SegmentDescription(
        segment_number=number,
        segment_label=_SEGMENT_LABELS[label],
        segmented_property_category=codes.ABNORMAL_STRUCTURE if is_infection else codes.ANATOMICAL_STRUCTURE,
        segmented_property_type=codes.OPACITY if is_infection else codes.LUNG,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=identity.part_uid("tracking", str(label)),
        tracking_id=_SEGMENT_LABELS[label],
        anatomic_regions=[codes.LUNG] if is_infection else None,
        display_color=CIELabColor.from_rgb(*_COLOURS[label]),
    )
    if not is_infection:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            code_item(_SIDES[label])
        ]
    return described


def _organise(dataset: Dataset, uid: str) -> None:
    """A UID of ours for the dimensions in place of a random one: equal input gives equal bytes."""
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _name_source_frames(dataset: Dataset, frame_of_slice: Sequence[int]) -> None:
    """Of a multi-frame source the bare header counted slices; its own frames are named in their place, from 1."""
    if not frame_of_slice:
        return
    for item in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in item.DerivationImageSequence:
            for image in derivation.SourceImageSequence:
                image.ReferencedFrameNumber = frame_of_slice[int(image.ReferencedFrameNumber) - 1] + 1
