"""A page for people as an Encapsulated PDF."""

from __future__ import annotations

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from covidseg_runtime.dicom.case import SERIES_DESCRIPTIONS, SERIES_NUMBERS, Case, complete
from covidseg_runtime.dicom.identity import MANUFACTURER
from covidseg_runtime.dicom.pictures import page


def make_encapsulated_pdf(case: Case) -> Dataset:
    """One page: the measures, the warnings and the overlay."""
    identity, kind = case.identity, "pdf"
    document = page(case, identity.when)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = EncapsulatedPDFStorage, identity.instance_uid(kind)
    dataset.Modality = "DOC"
    dataset.SeriesInstanceUID, dataset.SeriesNumber = identity.series_uid(kind), SERIES_NUMBERS[kind]
    dataset.SeriesDescription = SERIES_DESCRIPTIONS[kind]
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, identity.model_name
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = identity.model_sha256, identity.software_versions
    dataset.ConversionType = "WSD"  # workstation
    dataset.InstanceNumber = 1
    dataset.AcquisitionDateTime = ""
    dataset.BurnedInAnnotation = "NO"  # no page names the patient
    dataset.SourceInstanceSequence = [_reference(header) for header in case.bare]
    dataset.DocumentTitle = SERIES_DESCRIPTIONS[kind]
    dataset.ConceptNameCodeSequence = []
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocumentLength = len(document)
    dataset.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    complete(case, dataset)
    return dataset


def _reference(header: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return reference
