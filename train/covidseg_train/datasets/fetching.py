"""Data sets fetched from the web or imported from this disk, and checked.

What was fetched or imported stands in ``fetched.json`` of the set's folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from covidseg_runtime.bundle import sha256_of
from covidseg_runtime.errors import CovidsegError, SettingsError
from covidseg_runtime.volume_files import write_json
from covidseg_train.datasets.dataset import Dataset, Download
from covidseg_train.datasets.downloading import DownloadError, Listener, download_file
from covidseg_train.datasets.unpacking import ArchiveError, is_system_file, require_free_place, unpack_archive

RECORD_FILE = "fetched.json"
_LOCK_FILE = ".fetching.lock"


@dataclass(frozen=True)
class FetchedFile:
    """What is known of a file that was fetched or imported.

    Attributes:
        file_name: As in the data set's description.
        sha256: Computed here.
        is_verified: Whether it is the published hash; False where none was published.
        files: Path below the data set's folder and size in bytes of what came out of it (or of itself).
    """

    file_name: str
    sha256: str
    is_verified: bool
    files: dict[str, int]


def missing_downloads(dataset: Dataset, root: Path) -> tuple[Download, ...]:
    """The files of a set that have not been fetched, or of which something was lost since."""
    record = read_record(root)
    return tuple(download for download in dataset.downloads if not _is_settled(download, record, root))


def fetch_dataset(dataset: Dataset, root: Path, listener: Listener) -> tuple[FetchedFile, ...]:
    """Fetch, check and unpack what is missing of a set.

    Args:
        dataset: The data set.
        root: Its folder; made if missing.
        listener: Who is told.

    Returns:
        What is new.

    Raises:
        DownloadError: If the network fails; the next call goes on where it stopped.
        ArchiveError: If a file is not the published one, or not safe to unpack.
        OutputError: If the disk has no room for it.
        SettingsError: If COVIDSEG_OFFLINE forbids it.
    """
    with _only_one(root):
        fetched = []
        for download in missing_downloads(dataset, root):
            path = root / download.file_name
            if not path.is_file():
                listener.say(f"fetching {download.file_name}")
                download_file(download, path, listener)
            fetched.append(_settle(download, path, root, listener))
        return tuple(fetched)


def import_local(dataset: Dataset, folder: Path, root: Path, listener: Listener) -> tuple[FetchedFile, ...]:
    """Take a set from this disk: its archives if ``folder`` holds any, otherwise every file below ``folder``.

    Args:
        dataset: The data set.
        folder: Archives under their published names, or files laid out as the data set is.
        root: Folder of the data set; made if missing. Files get there as hard links where the disk allows it.
        listener: Who is told.

    Returns:
        The archives that were taken.

    Raises:
        ArchiveError: If an archive is not the published one, a file would replace another, or ``root`` holds no
            case afterwards; files of ``folder`` are then taken out again.
        SettingsError: If one folder lies within the other.
    """
    _refuse_nested(folder, root)
    archives = [download for download in dataset.downloads if (folder / download.file_name).is_file()]
    with _only_one(root):
        imported = tuple(_settle(archive, folder / archive.file_name, root, listener) for archive in archives)
        new_files = [] if archives else _copy_in(folder, root, listener)
        try:
            if not dataset.find_cases(root):
                raise ArchiveError(_no_case(dataset, f"{folder} brings no case of {dataset.name}"))
        except CovidsegError:
            for path in new_files:
                path.unlink()
            raise
        return imported


def find_problems(dataset: Dataset, root: Path, listener: Listener) -> Iterator[str]:
    """Check files and cases of a set; one sentence a problem.

    Archives that are still there are compared with their hash, what was unpacked with the record, and every case is
    read: image and mask must be sound and of one grid.
    """
    record = read_record(root)
    for download in dataset.downloads:
        yield from _archive_problems(download, record.get(download.file_name), root)
    for entry in record.values():
        lost = [name for name, size in entry.files.items() if _size(root / name) != size]
        if lost:
            yield f"{entry.file_name}: {len(lost)} of its {len(entry.files)} files are gone or cut, first {lost[0]}"
    yield from _case_problems(dataset, root, listener)


def read_record(root: Path) -> dict[str, FetchedFile]:
    """What was fetched or imported into a folder, by file name.

    Raises:
        ArchiveError: If the record is damaged.
    """
    path = root / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        return {entry["file_name"]: FetchedFile(**entry) for entry in json.loads(path.read_text("utf-8"))["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ArchiveError(f"{path} is damaged; delete it and fetch or import again.") from error


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Keep a second process from writing the same files; the end of the process releases it."""
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(f"Another covidseg is filling {root}; wait until it has finished.") from error
        yield


def _is_settled(download: Download, record: dict[str, FetchedFile], root: Path) -> bool:
    entry = record.get(download.file_name)
    if entry is None or download.sha256 not in ("", entry.sha256):
        return False
    return all(_size(root / name) == size for name, size in entry.files.items())


def _settle(download: Download, path: Path, root: Path, listener: Listener) -> FetchedFile:
    """Check a file that is on this disk, unpack it (or put it in place), and write it down."""
    sha256 = sha256_of(path)
    if download.sha256 not in ("", sha256):
        raise ArchiveError(
            f"{path} has sha256 {sha256}, the published file {download.sha256}; move it away and get it again."
        )
    if download.unpack_into:
        listener.say(f"unpacking {download.file_name}")
        below = PurePosixPath(download.unpack_into)
        sizes = unpack_archive(path, root / below)
        files = {str(below / name): size for name, size in sizes.items()}
    else:
        place = root / download.file_name
        require_free_place(path, place)
        _link_or_copy(path, place)
        files = {download.file_name: place.stat().st_size}
    entry = FetchedFile(download.file_name, sha256, bool(download.sha256), files)
    entries = {**read_record(root), entry.file_name: entry}
    write_json(root / RECORD_FILE, {"files": [asdict(each) for each in entries.values()]})
    return entry


def _link_or_copy(source: Path, place: Path) -> None:
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), place)
    except OSError:  # another file system, or one without hard links
        unfinished = place.with_name(f"{place.name}.part")
        shutil.copyfile(source, unfinished)
        os.replace(unfinished, place)


def _refuse_nested(folder: Path, root: Path) -> None:
    given, place = folder.resolve(), root.resolve()
    if given.is_relative_to(place) or place.is_relative_to(given):
        raise SettingsError(f"{folder} and {root} lie one in the other; give a folder outside by -o.")


def _copy_in(folder: Path, root: Path, listener: Listener) -> list[Path]:
    """Put the files below ``folder`` at the same places below ``root``; those that are new come back."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [name for name in names if not is_system_file(PurePosixPath(name))]
    for name in names:
        require_free_place(folder / name, root / name)
    new = [root / name for name in names if not (root / name).exists()]
    for number, place in enumerate(new, start=1):
        _link_or_copy(folder / place.relative_to(root), place)
        listener.progress("files", number, len(new))
    return new


def _archive_problems(download: Download, entry: FetchedFile | None, root: Path) -> Iterator[str]:
    path = root / download.file_name
    expected = download.sha256 or (entry.sha256 if entry else "")
    if path.is_file() and expected and (sha256 := sha256_of(path)) != expected:
        yield f"{download.file_name} has sha256 {sha256}, expected {expected}"


def _case_problems(dataset: Dataset, root: Path, listener: Listener) -> Iterator[str]:
    try:
        cases = dataset.find_cases(root)
    except CovidsegError as error:
        yield str(error)
        return
    if not cases:
        yield _no_case(dataset, f"{root} holds no case of {dataset.name}")
    for number, case in enumerate(cases, start=1):
        try:
            dataset.read(case)
        except CovidsegError as error:
            yield f"{case.name}: {error}"
        listener.progress("cases", number, len(cases))


def _no_case(dataset: Dataset, beginning: str) -> str:
    archives = ", ".join(download.file_name for download in dataset.downloads)
    expected = dataset.how_to_get or f"Expected are its archives ({archives}) or their content."
    return f"{beginning}. {expected}"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
