"""Lesion masks of several sources collected in one folder layout, one data set a kind of lesion.

On disk: ``ct/<case>_ct.nii.gz`` in HU and ``lesions/<case>_<mark>.nii.gz`` (0/1) of one grid. The cases are of
LIDC-IDRI, NSCLC-Radiomics with PleThora, and 4D-Lung; whoever has the published DICOM reads it with the data sets
of those names instead.
"""

from functools import partial
from pathlib import Path

from covidseg_train.datasets.dataset import CaseFiles, Dataset
from covidseg_train.datasets.reading import read_nifti_case

_CITATION = "Armato 2011 (LIDC-IDRI), Aerts 2014 (NSCLC-Radiomics), Kiser 2020 (PleThora), Hugo 2017 (4D-Lung); TCIA"
_HOW_TO_GET = "A folder with ct/ and lesions/ of <case>_ct.nii.gz and <case>_<mark>.nii.gz."


def find_chests(root: Path) -> tuple[CaseFiles, ...]:
    """List the cases whose tumour or nodules are marked."""
    marked = {case.name: case for mark in ("nodule50", "gtv") for case in find_cases(root, mark=mark)}
    return tuple(marked[name] for name in sorted(marked))


def find_cases(root: Path, *, mark: str) -> tuple[CaseFiles, ...]:
    """List the cases whose lesion of this kind is marked; the case is the patient."""
    names = sorted(path.name.removesuffix(f"_{mark}.nii.gz") for path in (root / "lesions").glob(f"*_{mark}.nii.gz"))
    return tuple(
        CaseFiles(name, name, root / "ct" / f"{name}_ct.nii.gz", root / "lesions" / f"{name}_{mark}.nii.gz")
        for name in names
    )


def _collected(name: str, *, mark: str, lesion: str, licence: str, limits: str) -> Dataset:
    return Dataset(
        name=name,
        title=f"Collected CT with {lesion} masks",
        lesion=lesion,
        licence=licence,
        citation=_CITATION,
        homepage="https://www.cancerimagingarchive.net",
        find_cases=partial(find_cases, mark=mark),
        read=read_nifti_case,
        limits=limits,
        how_to_get=_HOW_TO_GET,
    )


CHEST = Dataset(
    name="collected-chest",
    title="Collected CT without infection",
    lesion="none: tumours and nodules count as lung",
    licence="CC BY-NC 3.0 (LUNG1), CC BY 3.0 (LIDC-IDRI, 4D-Lung)",
    citation=_CITATION,
    homepage="https://www.cancerimagingarchive.net",
    find_cases=find_chests,
    read=read_nifti_case,
    limits="Opacities around tumours count as lung; scans whose tumours nobody marked are left out.",
    how_to_get=_HOW_TO_GET,
    marks_lung=True,
)
EFFUSION = _collected(
    "collected-effusion",
    mark="effusion",
    lesion="pleural effusion",
    licence="CC BY-NC 3.0",
    limits="One reviewer's masks; tumours are not marked, so the background is not free of lesions.",
)
TUMOUR = _collected(
    "collected-tumour",
    mark="gtv",
    lesion="lung tumour",
    licence="CC BY-NC 3.0 (LUNG1), CC BY 3.0 (4D-Lung)",
    limits="Effusions beside the tumours are not lesion here.",
)
NODULE = _collected(
    "collected-nodule",
    mark="nodule50",
    lesion="lung nodule",
    licence="CC BY 3.0",
    limits="Marked where half of the readers or more agree.",
)
