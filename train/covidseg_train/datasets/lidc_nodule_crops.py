"""Nodules of LIDC-IDRI with little context.

On disk: ``image/<patient>_<...>.nii.gz`` in HU and ``mask/`` of the same name.
"""

import re
from pathlib import Path

from covidseg_runtime.volume_files import read_voxels
from covidseg_train.datasets.dataset import CaseFiles, CaseVolumes, Dataset
from covidseg_train.datasets.reading import read_lesion


def find_cases(root: Path) -> tuple[CaseFiles, ...]:
    """List the crops; several are of one patient."""
    images = sorted((root / "image").glob("*.nii.gz"))
    return tuple(
        CaseFiles(path.name.removesuffix(".nii.gz"), patient_of(path.name), path, root / "mask" / path.name)
        for path in images
    )


def patient_of(file_name: str) -> str:
    """``LIDC-IDRI-0123`` out of a crop's name."""
    match = re.search(r"LIDC-IDRI-\d{4}", file_name)
    return match.group() if match else file_name


def read_crop(files: CaseFiles) -> CaseVolumes:
    """Read a crop; one inside a lung may hold nothing but air, so its values are not judged.

    Raises:
        VolumeError: If a file is unsuitable, or image and mask do not share one grid in the patient.
    """
    ct = read_voxels(files.ct)
    return CaseVolumes(ct, read_lesion(files, ct))


DATASET = Dataset(
    name="lidc-nodule-crops",
    title="LIDC-IDRI, nodules cut out",
    lesion="lung nodule",
    licence="CC BY 3.0",
    citation="Armato et al., Medical Physics 38(2):915-931, 2011; TCIA",
    homepage="https://www.cancerimagingarchive.net/collection/lidc-idri",
    find_cases=find_cases,
    read=read_crop,
    limits="Almost no negative context and few slices a crop; several crops are of one patient.",
    how_to_get="A folder with image/ and mask/ of equally named NIfTI crops.",
    is_whole_chest=False,
)
