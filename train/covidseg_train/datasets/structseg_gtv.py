"""Gross tumour volumes of lung cancer: task "Lung_GTV" of the StructSeg 2019 challenge.

On disk, as the challenge hands it out: ``Lung_GTV/<n>/data.nii.gz`` in HU and ``Lung_GTV/<n>/label.nii.gz``
(1 tumour), also without ``.gz``. A case is called ``train_<n>``, as in the benchmark's splits; that their number is
the folder's is a reading.
"""

from pathlib import Path

from covidseg_train.datasets.dataset import CaseFiles, Dataset
from covidseg_train.datasets.reading import find_nifti, inner_folder, read_nifti_case


def find_cases(root: Path) -> tuple[CaseFiles, ...]:
    """List the labelled cases; each is a patient."""
    cases = []
    for folder in inner_folder(root, "Lung_GTV").glob("*"):
        files = find_nifti(folder, "data") | find_nifti(folder, "label")
        if len(files) == 2:
            name = f"train_{folder.name}"
            cases.append(CaseFiles(name, name, files["data"], files["label"]))
    return tuple(sorted(cases, key=lambda case: case.name))


DATASET = Dataset(
    name="structseg-2019-gtv",
    title="StructSeg 2019, gross tumour volume of lung cancer",
    lesion="lung tumour",
    licence="held by the challenge's organisers; no redistribution",
    citation="Automatic Structure Segmentation for Radiotherapy Planning Challenge (StructSeg), MICCAI 2019",
    homepage="https://structseg2019.grand-challenge.org",
    find_cases=find_cases,
    read=read_nifti_case,
    limits="50 scans of one centre; other lesions beside the tumours are not marked.",
    how_to_get=(
        "Register at https://structseg2019.grand-challenge.org/Download/ and unpack the training data of task "
        "Lung_GTV: Lung_GTV/<n>/data.nii.gz and label.nii.gz."
    ),
)
