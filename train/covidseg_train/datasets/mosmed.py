"""MosMedData, the 50 scans with masks: the benchmark's unseen test set.

On disk, as published: ``studies/CT-1/study_0255.nii.gz`` in HU and ``masks/study_0255_mask.nii.gz`` (0/1), also
without ``.gz``, with or without a folder ``COVID19_1110`` around them. The other 1,060 studies have no mask.
"""

from pathlib import Path

from covidseg_train.datasets.dataset import CaseFiles, Dataset
from covidseg_train.datasets.reading import find_nifti, inner_folder, read_nifti_case

_MASK = "_mask"


def find_cases(root: Path) -> tuple[CaseFiles, ...]:
    """List the studies that have a mask; each is a patient."""
    folder = inner_folder(root, "COVID19_1110")
    studies = find_nifti(folder / "studies", "*/study_*")
    masks = find_nifti(folder / "masks", f"study_*{_MASK}")
    named = ((mask.removesuffix(_MASK), path) for mask, path in masks.items())
    return tuple(CaseFiles(name, name, studies[name], path) for name, path in named if name in studies)


DATASET = Dataset(
    name="mosmed-50",
    title="MosMedData, the 50 studies with masks",
    lesion="infection",
    licence="CC BY-NC-ND 3.0",
    citation="Morozov et al., MosMedData: chest CT scans with COVID-19 related findings, medRxiv 2020.05.20.20100362",
    homepage="https://mosmed.ai/datasets/covid19_1110",
    find_cases=find_cases,
    read=read_nifti_case,
    limits=(
        "An unseen test set: not to be trained on. Slices lie about 8 mm apart; mild disease (CT-1) only; the licence "
        "allows no derivatives."
    ),
    how_to_get=(
        "Get the studies and masks from https://mosmed.ai/datasets/covid19_1110 and unpack them so that "
        "studies/CT-1/study_0255.nii.gz and masks/study_0255_mask.nii.gz lie in one folder; no checksum is published."
    ),
)
