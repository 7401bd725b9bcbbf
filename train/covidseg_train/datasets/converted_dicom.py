"""Sets that are published as DICOM, read after conversion to NIfTI.

On disk: one folder a scan with ``image.nii.gz`` in HU and ``mask_<structure>.nii.gz`` (any value but 0) of one grid.
``dcmrtstruct2nii`` writes these names out of a CT series and its RTSTRUCT, ``dcm2niix -z y -f image`` the CT alone.
"""

from collections.abc import Callable
from pathlib import Path

from covidseg_runtime.errors import VolumeError
from covidseg_train.datasets.dataset import CaseFiles

IMAGE = "image.nii.gz"


def find_converted_cases(root: Path, *, masks: str, patient_of: Callable[[str], str]) -> tuple[CaseFiles, ...]:
    """List the scans that have a mask of the wanted structure; others are left out.

    Args:
        root: Folder of the scans' folders.
        masks: Pattern of the mask's file name; one file of a folder may fit it.
        patient_of: Patient of a scan, by its folder's name.

    Raises:
        VolumeError: If several masks of a folder fit.
    """
    cases = []
    for image in sorted(root.glob(f"*/{IMAGE}")):
        folder = image.parent
        fitting = sorted(path.name for path in folder.glob(masks))
        if len(fitting) > 1:
            raise VolumeError(f"{folder} holds {', '.join(fitting)}; one mask {masks} is expected, keep the right one.")
        cases += [CaseFiles(folder.name, patient_of(folder.name), image, folder / name) for name in fitting]
    return tuple(cases)


def how_to_convert(collection: str, mask: str, folder: str) -> str:
    """How to get a collection of the Imaging Data Commons and convert CT and RTSTRUCT."""
    # Version 5 of dcmrtstruct2nii calls what pydicom 3 removed, and its option for one structure fails.
    return (
        f"pip install idc-index dcmrtstruct2nii 'pydicom<3'; idc download {collection}; for each scan: dcmrtstruct2nii "
        f"convert -r RTSTRUCT.dcm -d CT_FOLDER -o {folder}, which writes image.nii.gz and, among others, {mask}."
    )
