"""Pleural effusions marked in NSCLC-Radiomics by PleThora.

On disk: masks as in the archive, ``Effusions/LUNG1-001/LUNG1-001_effusion_first_reviewer.nii.gz`` (0/1), and the CT,
published as DICOM, after conversion as ``NSCLC-Radiomics/LUNG1-001/image.nii.gz``. The masks lie on the CT's grid with
rows in the other direction (TCIA calls them RPI and the DICOM RAI): the arrays do not fit, the affines do. Where
``..._second_reviewer`` lies beside it, the first reviewer's mask is read; that the benchmark did so too is a reading.
"""

from pathlib import Path

from covidseg_train.datasets.converted_dicom import IMAGE
from covidseg_train.datasets.dataset import CaseFiles, Dataset, Download
from covidseg_train.datasets.nsclc_radiomics_gtv import CT_FOLDER, HOW_TO_CONVERT
from covidseg_train.datasets.reading import find_nifti, read_nifti_case

_MASK = "_effusion_first_reviewer"


def find_cases(root: Path) -> tuple[CaseFiles, ...]:
    """List the patients that have both a CT and an effusion mask."""
    masks = find_nifti(root / "Effusions", f"*/*{_MASK}")
    named = ((mask.removesuffix(_MASK), path) for mask, path in masks.items())
    cases = (CaseFiles(name, name, root / CT_FOLDER / name / IMAGE, path) for name, path in named)
    return tuple(case for case in cases if case.ct.is_file())


DATASET = Dataset(
    name="nsclc-pleural-effusion",
    title="PleThora, pleural effusions in NSCLC-Radiomics",
    lesion="pleural effusion",
    licence="CC BY-NC 3.0",
    citation=(
        "Kiser et al., PleThora, Medical Physics 2020, doi 10.1002/mp.14424; TCIA, doi 10.7937/tcia.2020.6c7y-gq39; "
        "Aerts et al., Nature Communications 5:4006, 2014"
    ),
    homepage="https://doi.org/10.7937/tcia.2020.6c7y-gq39",
    find_cases=find_cases,
    read=read_nifti_case,
    limits="78 scans, one reviewer's masks; tumours are not marked, so the background is not free of lesions.",
    downloads=(
        Download(
            url=(
                "https://wiki.cancerimagingarchive.net/download/attachments/68551327/"
                "PleThora%20Effusions%20June%202020.zip?version=1&modificationDate=1593202778373&api=v2"
            ),
            file_name="PleThora_Effusions_June_2020.zip",
            unpack_into=".",
            sha256="5dd07c327fb5723c5bbb48f2a02d7f365513d3ad136811fbe4def330ef2d7f6a",
        ),
    ),
    how_to_get=f"The masks are a download, the CTs are not: {HOW_TO_CONVERT}",
)
