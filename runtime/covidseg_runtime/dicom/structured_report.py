"""The measures as a structured report: Comprehensive 3D SR after TID 1500, preliminary and unverified.

Group 1 is the infection, which names its segment where there is a segmentation (TID 1411, else TID 1501); both lungs,
the left and the right follow (TID 1501). A lung includes the infection within it, so no lung names a segment. Notice,
limits and warnings stand as text. There is no image library: it would take some 4 kB a slice and say nothing new.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset
from pydicom.sr.coding import Code

from covidseg_runtime.dicom import codes
from covidseg_runtime.dicom.case import Case, complete, general_attributes
from covidseg_runtime.dicom.identity import MANUFACTURER
from covidseg_runtime.dicom.segmentation_object import INFECTION_SEGMENT

_LUNGS = (
    ("whole", "Both lungs", codes.RIGHT_AND_LEFT),
    ("left", "Left lung", codes.LEFT),
    ("right", "Right lung", codes.RIGHT),
)


def make_structured_report(case: Case, segmentation: Dataset | None) -> Dataset:
    """The report on one result.

    Args:
        case: The result.
        segmentation: The Segmentation that goes with it; None if there is none, as where no infection was found.
    """
    content = MeasurementReport(
        observation_context=_observation_context(case),
        procedure_reported=codes.CT_OF_CHEST,
        imaging_measurements=[_infection_group(case, segmentation), *_lung_groups(case)],
        title=codes.MEASUREMENT_REPORT,
    )
    content[0].ContentSequence.append(_texts(case))
    dataset = Comprehensive3DSR(
        evidence=[*case.bare, *([] if segmentation is None else [_evidence(segmentation)])],
        content=content,
        is_complete=True,
        is_final=False,
        is_verified=False,
        **general_attributes(case, "sr", variant="" if segmentation is None else segmentation.SOPInstanceUID),
    )
    dataset.CodingSchemeIdentificationSequence = [_private_scheme()]
    complete(case, dataset)
    return dataset


def _private_scheme() -> Dataset:
    scheme = Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = codes.PRIVATE_SCHEME, "Private codes of covidseg"
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    return scheme


def _evidence(segmentation: Dataset) -> Dataset:
    """What a report has to know of an object that it names."""
    reference = Dataset()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        setattr(reference, keyword, segmentation[keyword].value)
    return reference


def _observation_context(case: Case) -> ObservationContext:
    identity = case.identity
    device = DeviceObserverIdentifyingAttributes(
        uid=identity.device_uid,
        name=f"covidseg {identity.software_version}",
        manufacturer_name=MANUFACTURER,
        model_name=identity.model_name,
        serial_number=identity.model_sha256,
    )
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=CodedConcept.from_code(codes.DEVICE), observer_identifying_attributes=device
        )
    )


def _algorithm(case: Case) -> AlgorithmIdentification:
    identity = case.identity
    return AlgorithmIdentification(
        name=identity.model_name,
        version=identity.model_version,
        # In one text: readers such as dcmqi keep the first only.
        parameters=[", ".join(f"{name} {value}" for name, value in identity.parameters.items())],
        family=codes.ARTIFICIAL_INTELLIGENCE,
        manufacturer=MANUFACTURER,
    )


def _tracking(case: Case, name: str) -> TrackingIdentifier:
    return TrackingIdentifier(uid=case.identity.part_uid("group", name), identifier=name)


def _infection_group(
    case: Case, segmentation: Dataset | None
) -> VolumetricROIMeasurementsAndQualitativeEvaluations | MeasurementsAndQualitativeEvaluations:
    common: dict[str, Any] = {
        "tracking_identifier": _tracking(case, "Infection (lung opacity)"),
        "finding_category": codes.ABNORMAL_STRUCTURE,
        "finding_type": codes.OPACITY,
        "finding_sites": [FindingSite(anatomic_location=codes.LUNG)],
        "algorithm_id": _algorithm(case),
        "measurements": list(_infection_measurements(case)),
    }
    if segmentation is None:
        return MeasurementsAndQualitativeEvaluations(**common)
    segment = ReferencedSegment(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        segment_number=INFECTION_SEGMENT,
        source_series=SourceSeriesForSegmentation(case.source.series_uid),
    )
    return VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **common)


def _infection_measurements(case: Case) -> Iterator[Measurement]:
    measures = case.measures
    yield from _measurement(codes.VOLUME, measures.infection_volume_ml.whole, codes.MILLILITRE, codes.SUM_OF_VOXELS)
    yield from _measurement(codes.PERCENTAGE_OF_INFECTION, measures.infection_percent.whole, codes.PERCENT)
    if measures.mean_infection_hu is not None:
        yield Measurement(
            name=codes.ATTENUATION,
            value=measures.mean_infection_hu,
            unit=codes.HOUNSFIELD_UNIT,
            derivation=codes.MEAN,
        )
    yield from _measurement(codes.NUMBER_OF_LESIONS, measures.lesion_count, codes.NO_UNIT)
    yield from _measurement(codes.VOXEL_COUNT, case.infected_voxels, codes.NO_UNIT)
    yield from _measurement(codes.GROUND_GLASS_VOLUME, measures.ground_glass_ml, codes.MILLILITRE)
    yield from _measurement(codes.CONSOLIDATION_VOLUME, measures.consolidation_ml, codes.MILLILITRE)
    found = case.volume_range
    if found is not None:
        yield from _measurement(codes.VOLUME_RANGE_LOW, found["low_ml"], codes.MILLILITRE)
        yield from _measurement(codes.VOLUME_RANGE_HIGH, found["high_ml"], codes.MILLILITRE)


def _lung_groups(case: Case) -> Iterator[MeasurementsAndQualitativeEvaluations]:
    """One group a lung, and none where the network labels no lungs."""
    measures = case.measures
    for side, name, laterality in _LUNGS:
        lung_ml = getattr(measures.lung_volume_ml, side)
        if lung_ml is None:
            continue
        yield MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking(case, name),
            finding_category=codes.ANATOMICAL_STRUCTURE,
            finding_type=codes.LUNG,
            finding_sites=[FindingSite(anatomic_location=codes.LUNG, laterality=laterality)],
            algorithm_id=_algorithm(case),
            measurements=[
                *_measurement(codes.VOLUME, lung_ml, codes.MILLILITRE, codes.SUM_OF_VOXELS),
                *_measurement(codes.INFECTION_VOLUME, getattr(measures.infection_volume_ml, side), codes.MILLILITRE),
                *_measurement(codes.PERCENTAGE_OF_INFECTION, getattr(measures.infection_percent, side), codes.PERCENT),
            ],
        )


def _measurement(name: Code, value: float | None, unit: Code, method: Code | None = None) -> Iterator[Measurement]:
    """A measurement, or nothing where it has no value."""
    if value is not None:
        yield Measurement(name=name, value=value, unit=unit, method=method)


def _texts(case: Case) -> ContainerContentItem:
    """Container with the notice, the limits, what the range means, and each warning."""
    notice, limits, warnings = case.texts
    texts = [(codes.NOTICE, notice), (codes.LIMITS, limits)]
    if case.range_sentence is not None:
        texts.append((codes.COMMENT, case.range_sentence))
    texts += [(codes.WARNING, warning) for warning in warnings]
    container = ContainerContentItem(
        name=codes.QUALITATIVE_EVALUATIONS, relationship_type=RelationshipTypeValues.CONTAINS
    )
    container.ContentSequence = ContentSequence(
        [TextContentItem(name, text, relationship_type=RelationshipTypeValues.CONTAINS) for name, text in texts]
    )
    return container
