"""Nodules of LIDC-IDRI in whole scans.

Published as DICOM with the contours of four readers as XML; on disk, after conversion: one folder a scan whose name
holds the patient, such as ``LIDC-IDRI-0001/image.nii.gz`` and ``mask_nodule50.nii.gz``, which marks what half of a
nodule's readers or more marked.
"""

from functools import partial

from covidseg_train.datasets.converted_dicom import find_converted_cases
from covidseg_train.datasets.dataset import Dataset
from covidseg_train.datasets.lidc_nodule_crops import patient_of
from covidseg_train.datasets.reading import read_nifti_case

DATASET = Dataset(
    name="lidc-idri",
    title="LIDC-IDRI, whole scans",
    lesion="lung nodule",
    licence="CC BY 3.0",
    citation="Armato et al., Medical Physics 38(2):915-931, 2011; TCIA",
    homepage="https://www.cancerimagingarchive.net/collection/lidc-idri",
    find_cases=partial(find_converted_cases, masks="mask_nodule50.nii.gz", patient_of=patient_of),
    read=read_nifti_case,
    limits="Nodules of 3 mm and more; marked where half of the readers or more agree.",
    how_to_get=(
        "pip install idc-index pylidc; idc download lidc_idri; for each scan: dcm2niix -z y -f image -o LIDC-IDRI-0001 "
        "CT_FOLDER, and put the masks of pylidc's consensus(clevel=0.5) on that grid as mask_nodule50.nii.gz."
    ),
)
