"""Which files of a folder are scans, whose share they are, and where their results go."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from covidseg_runtime.errors import SettingsError, VolumeError
from covidseg_runtime.scan_kind import has_nifti_ending, is_gzip_name, without_nifti_ending

_OWN_NAME = "_covidseg"
# Where NIfTI-1 keeps its description, and what `write_label_map` writes there.
_DESCRIPTION = slice(148, 228)
_OWN_DESCRIPTION = b"covidseg label map"
# A file that `write_bytes_atomic` had not finished: .NAME.xxxxxxxx
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")


@dataclass(frozen=True)
class Part:
    """One of several equal shares of the work.

    A scan belongs to a part by the sha256 of its path below the folder: machines agree on it without talking, and
    scans that are added later move no other one.

    Attributes:
        number: From 0.
        total: How many there are.
    """

    number: int = 0
    total: int = 1

    def __post_init__(self) -> None:
        """Refuse a part that is none."""
        if not 0 <= self.number < self.total:
            raise SettingsError(f"part {self.number} of {self.total}: parts are counted from 0 to the number less one")

    def has(self, name: str) -> bool:
        """Whether the scan of that name belongs to this part."""
        return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") % self.total == self.number

    @property
    def manifest_name(self) -> str:
        """Each part has a manifest of its own: to append to one file from several machines is not safe."""
        return "manifest.jsonl" if self.total == 1 else f"manifest.part-{self.number}-of-{self.total}.jsonl"


@dataclass(frozen=True)
class FolderJob:
    """What is asked for.

    Attributes:
        source: The folder of scans.
        output: The folder of results.
        part: The share of this process.
        overwrite: Also do what is done.
    """

    source: Path
    output: Path
    part: Part = Part()
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse folders of which one lies within the other: results would become scans."""
        source, output = self.source.resolve(), self.output.resolve()
        if source.is_relative_to(output) or output.is_relative_to(source):
            raise SettingsError(f"{self.output} and {self.source} lie within each other; give results another folder")


@dataclass(frozen=True)
class FolderScan:
    """A scan and where its results go.

    Attributes:
        name: Path below the folder of scans, with "/".
        source: The scan.
        stem: Path of its results below the folder of results, with "/" and without ending.
        labels: The label map to be.
        report: The report to be.
        twin: A scan that came first and whose results have the same names, or None.
    """

    name: str
    source: Path
    stem: str
    labels: Path
    report: Path
    twin: str | None


def find_scans(job: FolderJob) -> tuple[FolderScan, ...]:
    """The scans of a part: every ``.nii`` and ``.nii.gz`` below the folder, sorted by path.

    Passed over are names that begin with a dot, linked folders, and covidseg's own label maps, known by
    ``_covidseg`` at the end of the name or by their header.

    Raises:
        VolumeError: if the folder holds none, or a part of it cannot be listed.
    """
    names = sorted(_walk(job.source))
    if not names:
        raise VolumeError(f"{job.source} holds no scan; .nii or .nii.gz files are expected in it or below")
    first: dict[str, str] = {}
    scans = []
    for name in names:
        stem = f"{without_nifti_ending(name)}{_OWN_NAME}"
        twin = first.setdefault(stem, name)
        if job.part.has(name):
            scans.append(
                FolderScan(
                    name=name,
                    source=job.source / name,
                    stem=stem,
                    labels=job.output / f"{stem}.nii.gz",
                    report=job.output / f"{stem}.json",
                    twin=None if twin == name else twin,
                )
            )
    return tuple(scans)


def remove_temporaries(scans: Iterable[FolderScan]) -> None:
    """Remove what a killed run had not finished; only of this part, since another may be at work."""
    remove_unfinished(path for scan in scans for path in (scan.labels, scan.report))


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Remove what a killed process left of files that `write_bytes_atomic` was writing."""
    names_of_folder: dict[Path, set[str]] = {}
    for path in paths:
        names_of_folder.setdefault(path.parent, set()).add(path.name)
    for folder, names in names_of_folder.items():
        for path in folder.iterdir() if folder.is_dir() else ():
            match = _TEMPORARY.fullmatch(path.name)
            if match and match[1] in names:
                with suppress(OSError):
                    path.unlink()


def _walk(folder: Path) -> Iterator[str]:
    """Paths below `folder` of what is taken for a scan, with "/"."""
    for current, folders, files in os.walk(folder, onerror=_refuse_unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(current, name)
            if has_nifti_ending(name) and not name.startswith(".") and not _is_own_label_map(path):
                yield path.relative_to(folder).as_posix()


def _refuse_unlisted(error: OSError) -> None:
    raise VolumeError(f"{error.filename} cannot be listed: {error.strerror}; mend that, or leave it out") from error


def _is_own_label_map(path: Path) -> bool:
    if without_nifti_ending(path.name).endswith(_OWN_NAME):
        return True
    try:
        with gzip.open(path) if is_gzip_name(path.name) else path.open("rb") as file:
            return file.read(_DESCRIPTION.stop)[_DESCRIPTION].startswith(_OWN_DESCRIPTION)
    except (OSError, EOFError, zlib.error):
        return False  # whatever it is, reading it as a scan will tell
