"""Folders that are written whole or not at all, the bundle's first of all: description, model, card."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from covidseg_runtime.errors import BundleError, OutputError


def write_bundle_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle beside its place, then move it there in one step.

    Args:
        folder: Where the bundle shall lie. An earlier bundle there is replaced; anything else is left alone.
        files: Content by file name; ``bundle.json`` among them.

    Raises:
        BundleError: If ``folder`` exists and is not a bundle.
        OutputError: If it cannot be written.
    """
    if folder.exists() and not (folder / "bundle.json").is_file():
        raise BundleError(f"{folder} exists and is not a model bundle; give the name of a new folder.")
    write_folder(folder, files)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder beside its place, then move it there in one step; an earlier one is replaced.

    Args:
        folder: Where it shall lie.
        files: Content by file name; a name may hold folders, parted by ``/``.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); give another folder.") from error
    try:
        for name, content in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            _write_synced(draft / name, content)
        draft.chmod(0o755)
        _swap_in(draft, folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); give another folder.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def json_bytes(value: Mapping[str, object]) -> bytes:
    """Indented JSON with a line end, the form of every JSON file in a bundle."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _swap_in(draft: Path, folder: Path) -> None:
    if not folder.exists():
        draft.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old)
