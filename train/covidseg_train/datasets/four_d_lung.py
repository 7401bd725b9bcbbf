"""Lung tumours of 4D-Lung: CT of several phases of breathing and visits.

Published as DICOM with an RTSTRUCT a phase; on disk, after conversion: one folder a scan whose name begins with the
patient, such as ``113_HM10395_phase40/image.nii.gz`` and ``mask_Tumor_c40.nii.gz`` (structures carry their phase).
"""

import re
from functools import partial

from covidseg_train.datasets.converted_dicom import find_converted_cases, how_to_convert
from covidseg_train.datasets.dataset import Dataset
from covidseg_train.datasets.reading import read_nifti_case


def patient_of(name: str) -> str:
    """``113_HM10395`` out of a folder's name: all phases and visits are one patient's."""
    match = re.match(r"\d+_HM10395", name)
    return match.group() if match else name


DATASET = Dataset(
    name="4d-lung",
    title="4D-Lung, tumour",
    lesion="lung tumour",
    licence="CC BY 3.0",
    citation="Hugo et al., Medical Physics 44(2):762-771, 2017; TCIA",
    homepage="https://www.cancerimagingarchive.net/collection/4d-lung",
    find_cases=partial(find_converted_cases, masks="mask_Tumor*.nii.gz", patient_of=patient_of),
    read=read_nifti_case,
    limits="20 patients; phases and visits of one look alike, so few scans are independent.",
    how_to_get=how_to_convert("4d_lung", "mask_Tumor_c40.nii.gz", "113_HM10395_phase40"),
)
