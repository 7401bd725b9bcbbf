"""Patient and study of the source, carried over unchanged into the objects made from it.

Elements are taken as they are encoded, not read and written anew: a date that no standard knows or a name in an odd
character set reaches the archive as the scanner sent it, so that the archive finds the same patient, and no library
warns of its value in a log.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement

# Type 2: they have to be there, and may be empty.
REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_OPTIONAL = (
    "SpecificCharacterSet",
    "StudyDescription",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "RequestingService",
    "ReferencedStudySequence",
    "ProcedureCodeSequence",
    "ReasonForPerformedProcedureCodeSequence",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "OtherPatientIDsSequence",
    "ReferencedPatientSequence",
    "PatientBirthTime",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientComments",
    "QualityControlSubject",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientSizeCodeSequence",
    "MedicalAlerts",
    "Allergies",
    "Occupation",
    "AdditionalPatientHistory",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "ServiceEpisodeID",
    "ServiceEpisodeDescription",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialProtocolEthicsCommitteeName",
    "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    "LongitudinalTemporalInformationModified",
)


def copy_patient_and_study(header: Dataset, target: Dataset) -> None:
    """Give `target` the patient, the study and the character set of the source.

    Args:
        header: Of the source; it is not changed.
        target: The object; what type 2 the source lacks is empty there.
    """
    for keyword in REQUIRED:
        setattr(target, keyword, "")
    copy_elements(header, target, (*REQUIRED, *_OPTIONAL))
    target.StudyInstanceUID = str(header.StudyInstanceUID)


def copy_elements(header: Dataset, target: Dataset, keywords: Iterable[str]) -> None:
    """Copy those of the elements that `header` has, as they are encoded there."""
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        if tag is None or tag not in header:
            continue
        vr = dictionary_VR(tag)
        element = header.get_item(tag)
        if isinstance(element, RawDataElement) and vr != "SQ":
            # An element of implicit VR names none, and the objects are written with explicit VR.
            target[tag] = element._replace(VR=vr, value=_even(element.value or b""))
        else:
            target[tag] = deepcopy(header[tag])


def _even(value: bytes) -> bytes:
    return value if len(value) % 2 == 0 else value + b" "
