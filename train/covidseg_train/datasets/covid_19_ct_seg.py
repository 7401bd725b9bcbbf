"""COVID-19-CT-Seg (Zenodo 3757476): 20 scans, the benchmark's target.

On disk: four flat archives hold files of the same names, so each has a folder of its own, named like the archive:
``COVID-19-CT-Seg_20cases/<case>.nii.gz`` and ``Infection_Mask/``, ``Lung_and_Infection_Mask/`` (1 left lung, 2 right
lung, 3 infection), ``Lung_Mask/``. The ten Coronacases are in HU; the ten Radiopaedia scans are the window
[-1250, 250] HU scaled to 0-255 and are mapped back here.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.intensity import grey_levels_to_hounsfield
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import read_voxels
from covidseg_train.datasets.covid_19_ct_seg_rebuilt import patient_of
from covidseg_train.datasets.dataset import CaseFiles, CaseVolumes, Dataset, Download
from covidseg_train.datasets.reading import find_nifti, read_lesion, read_nifti_case

WINDOW_HU = (-1250.0, 250.0)
_IMAGES = "COVID-19-CT-Seg_20cases"
_INFECTION_LABEL = 3
_SHA256 = {
    _IMAGES: "a5060480eff9315b069b086312dac4872777901fb80d268a5a83edd9f4e7b440",
    "Lung_and_Infection_Mask": "34f5a573cb8fb53cb15abe81868395d9addf436854826a6fd6e70c2b294f19c3",
    "Lung_Mask": "f060b0d0299939a6d95ddefdbfa281de1a779c4d230a5adbd32414711d6d8187",
    "Infection_Mask": "87901c73fdd2230260e61d2dbc57bf56026efc28264006b8ea2bf411453c1694",
}


def find_cases(root: Path) -> tuple[CaseFiles, ...]:
    """List the cases whose infection is marked, in a mask of its own or in one with the lungs."""
    alone = find_nifti(root / "Infection_Mask", "*")
    with_lungs = find_nifti(root / "Lung_and_Infection_Mask", "*")
    cases = []
    for name, ct in find_nifti(root / _IMAGES, "*").items():
        if name in alone:
            cases.append(CaseFiles(name, patient_of(name), ct, alone[name]))
        elif name in with_lungs:
            cases.append(CaseFiles(name, patient_of(name), ct, with_lungs[name], (_INFECTION_LABEL,)))
    return tuple(cases)


def read_case(files: CaseFiles) -> CaseVolumes:
    """Read a case; a scan that holds a window in place of HU is told by its values.

    Raises:
        VolumeError: If a file is unsuitable, or CT and mask do not share one grid in the patient.
    """
    stored = read_voxels(files.ct)  # the runtime's reader of CTs refuses what is not in HU
    if not is_windowed(stored.voxels):
        return read_nifti_case(files)
    ct = Volume(grey_levels_to_hounsfield(stored.voxels, WINDOW_HU), stored.affine, WINDOW_HU)
    return CaseVolumes(ct, read_lesion(files, ct), is_true_hu=False)


def is_windowed(voxels: NDArray[np.number]) -> bool:
    """Whether values are grey levels 0-255 of a window, and neither HU nor the labels of a mask put in its place."""
    return bool(voxels.min() >= 0 and _INFECTION_LABEL < voxels.max() <= 255)


DATASET = Dataset(
    name="covid-19-ct-seg",
    title="COVID-19-CT-Seg, 20 cases",
    lesion="infection",
    licence="CC BY-NC-SA 4.0",
    citation=(
        "Ma et al., Toward data-efficient learning: a benchmark for COVID-19 CT lung and infection segmentation, "
        "Medical Physics 48(3):1197-1210, 2021; Zenodo 3757476; coronacases.org; radiopaedia.org"
    ),
    homepage="https://zenodo.org/records/3757476",
    find_cases=find_cases,
    read=read_case,
    limits=(
        "The ten Radiopaedia scans hold no HU but a window of [-1250, 250] HU in 256 steps, mapped back: what lies "
        "outside is lost, and measures in HU are not valid there. 20 scans are of 19 patients (radiopaedia_10_85902_1 "
        "and _3). radiopaedia_29_86490_1 holds very little infection. Some sources quote CC BY 4.0 as the licence."
    ),
    downloads=tuple(
        Download(f"https://zenodo.org/records/3757476/files/{name}.zip", f"{name}.zip", name, sha256)
        for name, sha256 in _SHA256.items()
    ),
)
