"""COVID-19-CT-Seg (Zenodo 3757476), rebuilt from published 8-bit slices.

On disk: ``<case>_ct.nii.gz`` (int16 HU) and ``<case>_infection.nii.gz`` (0/1) of one grid. Limits that must be
said wherever results are shown: HU recovered by calibration (about ±25 HU), in-plane resolution half the
original, infection masks from a 128×128 grid (edges good to 1–2 mm), spacings partly guessed (all Radiopaedia
cases; in-plane of coronacases_008), so DSC and NSD are not comparable to the point with published tables.

Licence: CC BY-NC-SA 4.0. Cite Ma et al., Medical Physics 48(3):1197–1210, 2021; coronacases.org; Radiopaedia.
"""

from dataclasses import dataclass
from pathlib import Path

from covidseg_runtime.errors import VolumeError

NAME = "COVID-19-CT-Seg, rebuilt from 8-bit slices"
LICENCE = "CC BY-NC-SA 4.0"
CITATION = (
    "Ma et al., Toward data-efficient learning: a benchmark for COVID-19 CT lung and infection segmentation, "
    "Medical Physics 48(3):1197-1210, 2021; Zenodo 3757476; coronacases.org; radiopaedia.org"
)


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        name: Case name, e.g. ``coronacases_001``.
        ct: CT in HU.
        infection: Infection mask, 0/1, of the CT's grid.
    """

    name: str
    ct: Path
    infection: Path


def find_case(root: Path, name: str) -> CaseFiles:
    """Find the files of a case.

    Raises:
        VolumeError: If a file is not there.
    """
    case = CaseFiles(name, root / f"{name}_ct.nii.gz", root / f"{name}_infection.nii.gz")
    for path in (case.ct, case.infection):
        if not path.is_file():
            raise VolumeError(
                f"{path} is not there; give the folder that holds {path.name} by --data DIR or COVIDSEG_DATA."
            )
    return case
