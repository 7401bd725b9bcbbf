"""Data sets fetched from the web or imported from this disk, and checked.

A file arrives as ``<name>.part``, is continued after a stop, and gets its name when size and sha256 are right; one that
is wrong is kept as ``<name>.wrong``. What was fetched or imported stands in ``fetched.json`` of the set's folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import ClassVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from covidseg_runtime import __version__
from covidseg_runtime.bundle import sha256_of
from covidseg_runtime.errors import CovidsegError, OutputError, SettingsError
from covidseg_runtime.volume_files import write_json
from covidseg_train.datasets.dataset import Dataset, Download
from covidseg_train.datasets.unpacking import (
    ArchiveError,
    is_archive,
    is_system_file,
    require_free_place,
    unpack_archive,
)

RECORD_FILE = "fetched.json"
_LOCK_FILE = ".fetching.lock"
_CHUNK = 1 << 18
_TIMEOUT_S = 60
_NOT_SATISFIABLE = 416
_PARTIAL = 206
_AGAIN = "the same command goes on from there"


class DownloadError(CovidsegError):
    """A file cannot be got from the web now."""

    exit_code: ClassVar[int] = 1


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


@dataclass(frozen=True)
class Listener:
    """Who is told how it goes on.

    Attributes:
        say: Takes one line at each step.
        progress: Takes name, bytes done, and bytes in total (None where unknown).
    """

    say: Callable[[str], None]
    progress: Callable[[str, int, int | None], None]


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
        SettingsError: If COVIDSEG_OFFLINE forbids it.
    """
    with _only_one(root):
        fetched = []
        for download in missing_downloads(dataset, root):
            path = root / download.file_name
            if not path.is_file():
                listener.say(f"fetching {download.file_name}")
                _download(download, path, listener)
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


def _archive_problems(download: Download, entry: FetchedFile | None, root: Path) -> Iterator[str]:
    path = root / download.file_name
    expected = download.sha256 or (entry.sha256 if entry else "")
    if path.is_file() and expected and (sha256 := sha256_of(path)) != expected:
        yield f"{download.file_name} has sha256 {sha256}, expected {expected}"


def _no_case(dataset: Dataset, beginning: str) -> str:
    archives = ", ".join(download.file_name for download in dataset.downloads)
    expected = dataset.how_to_get or f"Expected are its archives ({archives}) or their content."
    return f"{beginning}. {expected}"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


# From the web


def _download(download: Download, path: Path, listener: Listener) -> None:
    """Fetch a file to ``path``, going on with what an earlier call left."""
    part = path.with_name(f"{path.name}.part")
    if _size(part) is None or _size(part) != download.size_bytes:
        _require_allowed(download)
        with _reached(download), _open(download, part) as response:
            _receive(download, response, part, listener)
    _require_promised(download, part)
    os.replace(part, path)
    _validator_file(part).unlink(missing_ok=True)


def _require_allowed(download: Download) -> None:
    if os.environ.get("COVIDSEG_OFFLINE", "") not in ("", "0"):
        raise SettingsError(
            f"COVIDSEG_OFFLINE is set, so {download.file_name} is not fetched; unset it, or import the file with "
            "`covidseg data import --from-local`."
        )
    _require_secure(download, download.url)


def _require_secure(download: Download, url: str) -> None:
    """Without a hash, only the connection vouches for a file; to this machine itself it needs no encryption."""
    web = urlsplit(url)
    is_safe = web.scheme == "https" or web.hostname in ("127.0.0.1", "::1", "localhost")
    if web.scheme not in ("http", "https") or not (is_safe or download.sha256):
        raise DownloadError(f"{url} is not https and {download.file_name} has no published hash; it is not fetched.")


@contextmanager
def _reached(download: Download) -> Iterator[None]:
    """Turn the refusals of a server into one sentence."""
    try:
        yield
    except HTTPError as error:
        error.close()
        raise DownloadError(
            f"{download.url} answers {error.code} {error.reason}; try again later, or get {download.file_name} by "
            "hand and import it with `covidseg data import --from-local`."
        ) from error


def _open(download: Download, part: Path) -> HTTPResponse:
    """Ask for what is missing; the whole file where the server cannot or must not go on with ``part``."""
    start = _size(part) or 0
    validator = _read_validator(part)
    headers = {"User-Agent": f"covidseg/{__version__}"}
    # Pieces of two versions of a file would only be noticed by its hash.
    if start and (validator or download.sha256):
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    try:
        response: HTTPResponse = urlopen(Request(download.url, headers=headers), timeout=_TIMEOUT_S)  # noqa: S310
    except HTTPError as error:
        if error.code != _NOT_SATISFIABLE or not start:
            raise
        error.close()
        part.unlink()
        return _open(download, part)
    except (OSError, HTTPException) as error:
        raise DownloadError(f"{download.url} cannot be reached ({_reason(error)}); {_AGAIN}.") from error
    if response.status == _PARTIAL and _first_byte(response) != start:
        response.close()
        part.unlink()
        return _open(download, part)
    return response


def _receive(download: Download, response: HTTPResponse, part: Path, listener: Listener) -> None:
    """Write what the server sends behind what is there."""
    _require_secure(download, response.url)
    done = (_size(part) or 0) if response.status == _PARTIAL else 0
    total = _total_bytes(download, response, done)
    _require_room(part, total, done)
    if not done:
        part.write_bytes(b"")
        _validator_file(part).write_text(_validator(response), encoding="utf-8")
    with part.open("ab") as file:
        for chunk in _chunks(download, response):
            file.write(chunk)
            done += len(chunk)
            listener.progress(download.file_name, done, total)
            if total is not None and done > total:
                break
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done < total:
        raise DownloadError(f"{download.url} ended after {done:,} of {total:,} bytes; {_AGAIN}.")


def _chunks(download: Download, response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise DownloadError(f"The connection to {download.url} broke ({_reason(error)}); {_AGAIN}.") from error


def _require_promised(download: Download, part: Path) -> None:
    """Check a whole file; a wrong one is moved aside so that the next call begins anew."""
    size, sha256 = part.stat().st_size, sha256_of(part)
    problem = ""
    if download.size_bytes not in (None, size):
        problem = f"has {size:,} bytes, {download.size_bytes:,} are expected"
    elif download.sha256 not in ("", sha256):
        problem = f"has sha256 {sha256}, expected {download.sha256}"
    elif download.unpack_into and not is_archive(part):
        problem = "is neither a zip nor a tar"
    if problem:
        wrong = part.with_suffix(".wrong")
        os.replace(part, wrong)
        raise ArchiveError(
            f"{download.file_name} from {download.url} {problem}. It is kept as {wrong}; the same command fetches it "
            "anew, and if it comes wrong again, it was changed on the web."
        )


def _total_bytes(download: Download, response: HTTPResponse, done: int) -> int | None:
    """Size of the whole file.

    Raises:
        ArchiveError: If the server has a file of another size than published; better said before than after hours.
    """
    length = response.headers.get("Content-Length", "")
    offered = done + int(length) if length.isdecimal() else None
    expected = download.size_bytes
    if None not in (offered, expected) and offered != expected:
        raise ArchiveError(
            f"{download.url} offers {offered:,} bytes, {expected:,} are expected: it was changed on the web."
        )
    return offered if expected is None else expected


def _require_room(part: Path, total: int | None, done: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - done > free:
        raise OutputError(f"{part.parent} has room for {free:,} bytes, {total - done:,} are needed; give another -o.")


def _first_byte(response: HTTPResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _validator(response: HTTPResponse) -> str:
    """What tells two versions of a file apart; weak tags are no good for it."""
    etag: str = response.headers.get("ETag", "")
    modified: str = response.headers.get("Last-Modified", "")
    return etag if etag.startswith('"') else modified


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _read_validator(part: Path) -> str:
    path = _validator_file(part)
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(reason) or type(error).__name__


# From this disk


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
