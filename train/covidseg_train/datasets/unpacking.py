"""Archives unpacked as if a stranger had packed them: nothing leaves the folder, nothing there is overwritten.

Zip and tar (plain or compressed) are taken, and such archives within them: the content of ``masks/a.zip`` goes into
``masks/a``, whether or not it has a folder ``a`` of its own. Entries of macOS (``._*``, ``__MACOSX``, ``.DS_Store``)
are left out.
"""

from __future__ import annotations

import errno
import filecmp
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, ClassVar, Literal

from covidseg_runtime.errors import CovidsegError

_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_MAX_DEPTH = 3
_MAX_FILES = 1_000_000
# Masks stored without compression shrink several hundred times in a zip, so that a ratio alone would refuse them.
_NEVER_ABSURD_BYTES = 16 << 30
_MAX_RATIO = 200
_CHUNK = 1 << 20


class ArchiveError(CovidsegError):
    """A file is not what its data set promises, or not safe to unpack."""

    exit_code: ClassVar[int] = 3


@dataclass(frozen=True)
class _Member:
    """One entry of an archive; ``open`` gives its content."""

    name: str
    kind: Literal["file", "folder", "other"]
    size_bytes: int
    open: Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass
class _Staging:
    """Files out of the archive, not yet in place, under numbers: nobody takes them for cases.

    Attributes:
        folder: Where they are.
        bytes_left: How much more may be unpacked.
        files: Each by the path that it will get, below the target.
        count: Files and archives staged so far.
    """

    folder: Path
    bytes_left: int
    files: dict[PurePosixPath, Path] = field(default_factory=dict)
    count: int = 0


def is_archive(path: Path) -> bool:
    """Whether the content of a file is that of a zip or tar."""
    return tarfile.is_tarfile(path) or zipfile.is_zipfile(path)


def unpack_archive(archive: Path, target: Path, *, max_bytes: int | None = None) -> dict[str, int]:
    """Unpack an archive, whole or not at all.

    A file that is there already stays if it is the same. One process at a time may unpack into a folder.

    Args:
        archive: Zip or tar.
        target: Folder that gets the content; made if missing.
        max_bytes: Most that may come out, all levels together. Default: what is free on the disk, and never more
            than 16 GiB or 200 times the archive, whichever is larger.

    Returns:
        Path below ``target`` and size in bytes of each file.

    Raises:
        ArchiveError: If the archive is damaged, holds a path out of the folder, a link or a device, unfolds without
            measure, or would replace another file.
    """
    target.mkdir(parents=True, exist_ok=True)
    folder = target / ".unpacking"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir()
    try:
        staging = _Staging(folder, _most_bytes(archive, target) if max_bytes is None else max_bytes)
        _stage(archive, PurePosixPath(), staging, depth=1)
        return _put_in_place(archive, staging, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_free_place(source: Path, place: Path) -> None:
    """Check that putting ``source`` at ``place`` destroys nothing.

    Raises:
        ArchiveError: If something else is there.
    """
    if not (place.exists() or place.is_symlink()):
        return
    if not place.is_file() or not filecmp.cmp(source, place, shallow=False):
        raise ArchiveError(
            f"{place} is there already and differs from the new file of this name; move it away, or choose another "
            "folder by -o."
        )


def is_system_file(path: PurePosixPath) -> bool:
    """Whether a file is one that macOS strews about."""
    return "__MACOSX" in path.parts or path.name.startswith("._") or path.name == ".DS_Store"


def _most_bytes(archive: Path, target: Path) -> int:
    sensible = max(_NEVER_ABSURD_BYTES, _MAX_RATIO * archive.stat().st_size)
    return min(sensible, shutil.disk_usage(target).free)


def _stage(archive: Path, below: PurePosixPath, staging: _Staging, *, depth: int) -> None:
    """Write every file of an archive, and of the archives in it, into the staging folder."""
    shown = str(below) if depth > 1 else archive.name
    if depth > _MAX_DEPTH:
        raise ArchiveError(f"{shown} is an archive in an archive, {depth} deep; at most {_MAX_DEPTH} are unpacked.")
    with _translated(shown), _open_members(archive, shown) as members:
        for member in members:
            inner = _safe_path(member.name, shown)
            if is_system_file(inner) or member.kind == "folder":
                continue
            own_folder = depth > 1 and inner.parts[0] == below.name
            path = below.parent / inner if own_folder else below / inner
            staged = _stage_member(member, shown, staging)
            if path.name.lower().endswith(_ENDINGS):
                _stage(staged, path.with_name(_without_ending(path.name)), staging, depth=depth + 1)
                staged.unlink()
            elif path in staging.files:
                raise ArchiveError(f"{shown} holds {member.name} twice; which of them is meant cannot be told.")
            else:
                staging.files[path] = staged


def _stage_member(member: _Member, shown: str, staging: _Staging) -> Path:
    if member.kind != "file":
        raise ArchiveError(f"{shown} holds {member.name}, a link or a device; only files and folders are unpacked.")
    staging.bytes_left -= member.size_bytes
    staging.count += 1
    if staging.bytes_left < 0 or staging.count > _MAX_FILES:
        raise ArchiveError(
            f"{shown} would unpack to more than its size lets expect, or than the disk has room for "
            f"({member.name} alone to {member.size_bytes:,} bytes); nothing was unpacked."
        )
    staged = staging.folder / str(staging.count)
    with member.open() as content, staged.open("xb") as file:
        shutil.copyfileobj(content, file, _CHUNK)
    if staged.stat().st_size != member.size_bytes:
        raise ArchiveError(f"{shown} ends within {member.name}; fetch it again.")
    return staged


def _put_in_place(archive: Path, staging: _Staging, target: Path) -> dict[str, int]:
    for path, staged in staging.files.items():
        if any(parent in staging.files for parent in path.parents):
            raise ArchiveError(f"{archive.name} holds {path.parent} as a file and as a folder.")
        require_free_place(staged, target / path)
    sizes = {}
    for path, staged in staging.files.items():
        sizes[str(path)] = staged.stat().st_size
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, place)
    return sizes


def _safe_path(name: str, shown: str) -> PurePosixPath:
    """The path of an entry below the folder; read as Windows does, which knows every separator and drive letters."""
    path = PureWindowsPath(name)
    climbs = any(not part.strip(". ") for part in path.parts)
    if path.anchor or climbs or "\0" in name:
        raise ArchiveError(f"{shown} holds {name!r}, a path out of the folder; nothing was unpacked.")
    return PurePosixPath(*path.parts)


def _without_ending(name: str) -> str:
    ending = max((ending for ending in _ENDINGS if name.lower().endswith(ending)), key=len)
    return name[: -len(ending)] or name


@contextmanager
def _open_members(archive: Path, shown: str) -> Iterator[Iterator[_Member]]:
    """Open a zip or tar, by its content."""
    # A tar that ends with a zip would pass for a zip; no zip passes for a tar.
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            yield _tar_members(tar)
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _zip_members(opened, shown)
    else:
        raise ArchiveError(f"{shown} is neither a zip nor a tar; fetch it again.")


def _zip_members(opened: zipfile.ZipFile, shown: str) -> Iterator[_Member]:
    for info in opened.infolist():
        if info.flag_bits & 1:
            raise ArchiveError(f"{shown} is encrypted; unpack it by hand and import the folder.")
        # The upper half holds the file's mode where a Unix packed it, else 0.
        kind = stat.S_IFMT(info.external_attr >> 16)
        is_plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        kind_word: Literal["file", "folder", "other"] = "folder" if info.is_dir() else "file"
        yield _Member(info.filename, kind_word if is_plain else "other", info.file_size, partial(opened.open, info))


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        kind: Literal["file", "folder", "other"] = "folder" if info.isdir() else "file" if info.isreg() else "other"
        yield _Member(info.name, kind, info.size, partial(_open_tar_member, tar, info))
    _require_end(tar)


def _require_end(tar: tarfile.TarFile) -> None:
    """Check that a tar ends with zeros: ``tarfile`` takes a damaged header for the end without a word."""
    if tar.fileobj is None:
        return
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("an entry after the last that could be read")
    while tar.fileobj.read(_CHUNK):  # up to the checksum of a compressed tar
        pass


def _open_tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> AbstractContextManager[IO[bytes]]:
    content = tar.extractfile(info)
    if content is None:
        raise tarfile.ReadError(f"{info.name} has no content")
    return closing(content)


@contextmanager
def _translated(shown: str) -> Iterator[None]:
    """Turn what damaged archives raise into one sentence; errors of the disk pass."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise ArchiveError(f"{shown} is damaged ({error}); fetch it again.") from error
    except NotImplementedError as error:
        raise ArchiveError(
            f"{shown} is packed in a way that is not known here ({error}); unpack it by hand and import the folder."
        ) from error
    except OSError as error:
        # gzip and bz2 report damage as an OSError without a number, zipfile seeks to where nothing can be.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise ArchiveError(f"{shown} is damaged ({error}); fetch it again.") from error
