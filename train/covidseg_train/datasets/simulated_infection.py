"""Simulated infection in real lungs, as ``write_simulated_cases`` leaves it.

On disk: ``simulated_<host>_<number>_ct.nii.gz`` (int16 HU) and ``simulated_<host>_<number>_infection.nii.gz`` (0/1)
of one grid, in one folder. A program put the lesions in: the masks are what it did, not what a reader saw.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from covidseg_train.datasets import four_d_lung, lidc_idri, nsclc_radiomics_gtv
from covidseg_train.datasets.dataset import CaseFiles, Dataset
from covidseg_train.datasets.reading import read_nifti_case

# By the ids that a collection gives its patients.
_COLLECTIONS = {
    r"LIDC-IDRI-\d{4}": lidc_idri.DATASET,
    r"LUNG1-\d{3}": nsclc_radiomics_gtv.DATASET,
    r"4DLung-\d{3}|\d{3}_HM10395.*": four_d_lung.DATASET,
}

_CT = "_ct.nii.gz"


def find_cases(root: Path) -> tuple[CaseFiles, ...]:
    """List the simulated cases; all cases of one host are one patient."""
    names = sorted(path.name.removesuffix(_CT) for path in root.glob(f"simulated_*{_CT}"))
    cases = (CaseFiles(name, host_of(name), root / f"{name}{_CT}", root / f"{name}_infection.nii.gz") for name in names)
    return tuple(case for case in cases if case.lesion.is_file())


def host_of(name: str) -> str:
    """``LIDC-IDRI-0001`` out of ``simulated_LIDC-IDRI-0001_2``."""
    match = re.fullmatch(r"simulated_(.+)_\d+", name)
    return match.group(1) if match else name


def collections_of(names: Iterable[str]) -> tuple[Dataset, ...]:
    """The published sets that the hosts of these cases come from, as far as their ids tell: whom to credit."""
    hosts = [host_of(name) for name in names]
    return tuple(
        dataset for ids, dataset in _COLLECTIONS.items() if any(re.fullmatch(ids, host) is not None for host in hosts)
    )


DATASET = Dataset(
    name="simulated-infection",
    title="Simulated infection in real lungs",
    lesion="simulated infection",
    licence="that of the host scans",
    citation="After Yao et al., Label-free segmentation of COVID-19 lesions in lung CT, IEEE TMI 2021",
    homepage="https://doi.org/10.1109/TMI.2021.3066161",
    find_cases=find_cases,
    read=read_nifti_case,
    limits=(
        "Simulated: drawn by a program into scans of other patients. Nothing measured on it says how well real "
        "infection is found."
    ),
    how_to_get="Made from CTs on this disk: covidseg data simulate HOST... -o DIR",
    is_simulated=True,
)
