"""Gross tumour volumes of NSCLC-Radiomics (LUNG1).

Published as DICOM with RTSTRUCT; on disk, after conversion: ``NSCLC-Radiomics/LUNG1-001/image.nii.gz`` and
``mask_GTV-1.nii.gz``. GTV-1 is the primary tumour; further ones (GTV-2, ...) and nodes are left out.
"""

from pathlib import Path

from covidseg_train.datasets.converted_dicom import find_converted_cases, how_to_convert
from covidseg_train.datasets.dataset import CaseFiles, Dataset
from covidseg_train.datasets.reading import inner_folder, read_nifti_case

CT_FOLDER = "NSCLC-Radiomics"
_MASK = "mask_GTV-1.nii.gz"
HOW_TO_CONVERT = how_to_convert("nsclc_radiomics", _MASK, f"{CT_FOLDER}/LUNG1-001")


def find_cases(root: Path) -> tuple[CaseFiles, ...]:
    """List the scans with a primary tumour; a scan's folder is named after its patient."""
    return find_converted_cases(inner_folder(root, CT_FOLDER), masks=_MASK, patient_of=str)


DATASET = Dataset(
    name="nsclc-radiomics-gtv",
    title="NSCLC-Radiomics, gross tumour volume",
    lesion="lung tumour",
    licence="CC BY-NC 3.0",
    citation="Aerts et al., Nature Communications 5:4006, 2014; TCIA, doi 10.7937/K9/TCIA.2015.PF0M9REI",
    homepage="https://doi.org/10.7937/K9/TCIA.2015.PF0M9REI",
    find_cases=find_cases,
    read=read_nifti_case,
    limits="Only the primary tumour is lesion: nodes, further tumours and effusions are background.",
    how_to_get=HOW_TO_CONVERT,
)
