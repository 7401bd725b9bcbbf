"""What a data set says of itself: where it comes from, under which licence, and how its cases lie on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.volume import Volume


@dataclass(frozen=True)
class Download:
    """One file of a data set on the web.

    Attributes:
        url: Where it lies.
        file_name: Its name on this disk.
        unpack_into: Folder below the data set's root that gets its content; archives of one data set may hold
            files of the same names, so each has its own. Empty: the file is kept as it is.
        sha256: Hash of the file; empty where none was published.
        size_bytes: Its size; None where unknown.
    """

    url: str
    file_name: str
    unpack_into: str = ""
    sha256: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        name: Unique within the data set, e.g. ``coronacases_001``.
        patient: Cases of one patient share it; splits never part them.
        ct: CT; a file, or a folder where the data set is published as DICOM.
        lesion: Mask or annotation of the lesion.
        lesion_values: Values of the mask that mean lesion; empty: every value but 0.
    """

    name: str
    patient: str
    ct: Path
    lesion: Path
    lesion_values: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class CaseVolumes:
    """One case as read: two volumes of one grid.

    Attributes:
        ct: Hounsfield units.
        lesion: 0 or 1, uint8.
        is_true_hu: False where the published values were a window scaled to 0–255 and were mapped back, so that
            everything outside the window is lost.
    """

    ct: Volume
    lesion: Volume
    is_true_hu: bool = True


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        name: As in configurations and on the command line, e.g. ``msd-lung-tumour``.
        title: As its authors call it.
        lesion: What its masks mark: infection, tumour, effusion or nodule.
        licence: Licence of the data.
        citation: What to cite.
        homepage: Page that describes it.
        find_cases: Lists the cases below a root folder, in the order of their names; empty if there are none.
        read: Reads one case; image and mask come back on one grid.
        limits: What must be said wherever results on it are shown.
        downloads: Files that ``covidseg data fetch`` gets; empty where the set cannot be fetched.
        how_to_get: What a person has to do where it cannot be fetched.
        is_whole_chest: False for crops, in which no lungs can be found.
        is_simulated: True where lesions were put in by a program.
        marks_lung: True where what is marked counts as lung and there is no lesion to find.
    """

    name: str
    title: str
    lesion: str
    licence: str
    citation: str
    homepage: str
    find_cases: Callable[[Path], tuple[CaseFiles, ...]]
    read: Callable[[CaseFiles], CaseVolumes]
    limits: str = ""
    downloads: tuple[Download, ...] = ()
    how_to_get: str = ""
    is_whole_chest: bool = True
    is_simulated: bool = False
    marks_lung: bool = False


def find_case(dataset: Dataset, root: Path, name: str) -> CaseFiles:
    """Find one case by its name.

    Raises:
        VolumeError: If it is not below ``root``.
    """
    cases = dataset.find_cases(root)
    for case in cases:
        if case.name == name:
            return case
    held = f"{len(cases)} other cases" if cases else "no case"
    raise VolumeError(
        f"{root} holds {held} of {dataset.name} and not {name}; give the folder that holds it by --data DIR or "
        "COVIDSEG_DATA."
    )


def find_named_cases(dataset: Dataset, root: Path, names: tuple[str, ...]) -> tuple[CaseFiles, ...]:
    """Find the named cases, in the order of ``names``; all cases where no name is given.

    Raises:
        VolumeError: If one is not below ``root``, or none is.
    """
    if names:
        return tuple(find_case(dataset, root, name) for name in names)
    cases = dataset.find_cases(root)
    if not cases:
        raise VolumeError(f"{root} holds no case of {dataset.name}; see `covidseg data list` for how to get it.")
    return cases
