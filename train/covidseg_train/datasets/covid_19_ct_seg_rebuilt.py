"""COVID-19-CT-Seg (Zenodo 3757476), rebuilt from published 8-bit slices.

On disk: ``<case>_ct.nii.gz`` (int16 HU) and ``<case>_infection.nii.gz`` (0/1) of one grid, in one folder.
"""

import re
from pathlib import Path

from covidseg_train.datasets.dataset import CaseFiles, Dataset
from covidseg_train.datasets.reading import read_nifti_case

_CT = "_ct.nii.gz"


def find_cases(root: Path) -> tuple[CaseFiles, ...]:
    """List the cases that have both a CT and an infection mask."""
    names = sorted(path.name.removesuffix(_CT) for path in root.glob(f"*{_CT}"))
    cases = (
        CaseFiles(name, patient_of(name), root / f"{name}{_CT}", root / f"{name}_infection.nii.gz") for name in names
    )
    return tuple(case for case in cases if case.lesion.is_file())


def patient_of(name: str) -> str:
    """The patient of a case: ``radiopaedia_10_85902_1`` and ``_3`` are one, by the benchmark's own issue 3."""
    match = re.match(r"radiopaedia_10_85902", name)
    return match.group() if match else name


DATASET = Dataset(
    name="covid-19-ct-seg-rebuilt",
    title="COVID-19-CT-Seg, rebuilt from 8-bit slices",
    lesion="infection",
    licence="CC BY-NC-SA 4.0",
    citation=(
        "Ma et al., Toward data-efficient learning: a benchmark for COVID-19 CT lung and infection segmentation, "
        "Medical Physics 48(3):1197-1210, 2021; Zenodo 3757476; coronacases.org; radiopaedia.org"
    ),
    homepage="https://zenodo.org/records/3757476",
    find_cases=find_cases,
    read=read_nifti_case,
    limits=(
        "HU recovered from 8-bit slices (about ±25 HU), in-plane resolution half the original, infection masks from "
        "a 128×128 grid (edges good to 1–2 mm), spacings partly guessed (all Radiopaedia cases; in-plane of "
        "coronacases_008): DSC and NSD are not comparable to the point with published tables."
    ),
    how_to_get="A folder of <case>_ct.nii.gz and <case>_infection.nii.gz; it is not on the web in this form.",
)
