"""Lung tumours of the Medical Segmentation Decathlon, task 6.

On disk, as in the archive: ``Task06_Lung/imagesTr/lung_001.nii.gz`` in HU and ``Task06_Lung/labelsTr/`` of the same
names (1 tumour). The archive also holds files ``._lung_001.nii.gz`` of macOS, which are no images, and ``imagesTs``
without labels.
"""

from pathlib import Path

from covidseg_train.datasets.dataset import CaseFiles, Dataset, Download
from covidseg_train.datasets.reading import find_nifti, inner_folder, read_nifti_case


def find_cases(root: Path) -> tuple[CaseFiles, ...]:
    """List the labelled cases; each is a patient."""
    folder = inner_folder(root, "Task06_Lung")
    labels = find_nifti(folder / "labelsTr", "lung_*")
    images = find_nifti(folder / "imagesTr", "lung_*")
    return tuple(CaseFiles(name, name, path, labels[name]) for name, path in images.items() if name in labels)


DATASET = Dataset(
    name="msd-lung-tumour",
    title="Medical Segmentation Decathlon, Task06 Lung",
    lesion="lung tumour",
    licence="CC BY-SA 4.0",
    citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, 2022",
    homepage="http://medicaldecathlon.com",
    find_cases=find_cases,
    read=read_nifti_case,
    limits="63 labelled scans; other lesions beside the tumours are not marked.",
    downloads=(
        Download(
            url="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task06_Lung.tar",
            file_name="Task06_Lung.tar",
            unpack_into=".",
            sha256="f782cd09da9cf7a3128475d4a53650d371db10f0427aa76e166fccfcb2654161",
            size_bytes=9_163_696_640,
        ),
    ),
)
