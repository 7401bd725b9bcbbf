"""One file fetched over HTTP(S).

It arrives as ``<name>.part``, is continued after a stop, and gets its name when size and sha256 are right; one that is
wrong is kept as ``<name>.wrong``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import ClassVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from covidseg_runtime import __version__
from covidseg_runtime.bundle import sha256_of
from covidseg_runtime.errors import CovidsegError, OutputError, SettingsError
from covidseg_train.datasets.dataset import Download
from covidseg_train.datasets.unpacking import ArchiveError, is_archive

_CHUNK = 1 << 18
_TIMEOUT_S = 60
_NOT_SATISFIABLE = 416
_PARTIAL = 206
_AGAIN = "the same command goes on from there"


class DownloadError(CovidsegError):
    """A file cannot be got from the web now."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True)
class Listener:
    """Who is told how it goes on.

    Attributes:
        say: Takes one line at each step.
        progress: Takes the name of a download with its bytes done and in total (None where unknown), or "files" or
            "cases" with how many are done and how many there are.
    """

    say: Callable[[str], None]
    progress: Callable[[str, int, int | None], None]


def download_file(download: Download, path: Path, listener: Listener) -> None:
    """Fetch a file to ``path``, going on with what an earlier call left.

    Raises:
        DownloadError: If the network fails, or the connection cannot be trusted.
        ArchiveError: If the file is not the published one.
        OutputError: If the disk has no room for it.
        SettingsError: If COVIDSEG_OFFLINE forbids it.
    """
    part = path.with_name(f"{path.name}.part")
    if not part.is_file() or part.stat().st_size != download.size_bytes:
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
    start = _bytes_there(part)
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
    if response.status == _PARTIAL and (not start or _first_byte(response) != start):
        response.close()
        if not start:
            raise DownloadError(
                f"{download.url} answers with a part where the whole file was asked for; get {download.file_name} by "
                "hand and import it with `covidseg data import --from-local`."
            )
        part.unlink()
        return _open(download, part)
    return response


def _receive(download: Download, response: HTTPResponse, part: Path, listener: Listener) -> None:
    """Write what the server sends behind what is there."""
    _require_secure(download, response.url)
    done = _bytes_there(part) if response.status == _PARTIAL else 0
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


def _bytes_there(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


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
