"""The overlay as a Secondary Capture, which every viewer of images shows."""

from __future__ import annotations

from highdicom.sc import SCImage
from pydicom import Dataset

from covidseg_runtime.dicom.case import Case, complete, general_attributes
from covidseg_runtime.dicom.pictures import overlay


def make_secondary_capture(case: Case) -> Dataset:
    """An RGB image of slices with the labels drawn over them and RESEARCH USE ONLY burned in."""
    dataset = SCImage(
        pixel_array=overlay(case),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # each slice is seen from the feet: right to left, front to back
        study_instance_uid=case.source.study_uid,
        **general_attributes(case, "sc"),
    )
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    # Words are burned in, though none that tells who the patient is; who strips such words has to look here.
    dataset.BurnedInAnnotation = "YES"
    dataset.Laterality = ""
    complete(case, dataset)
    dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = dataset.ContentDate, dataset.ContentTime
    return dataset
