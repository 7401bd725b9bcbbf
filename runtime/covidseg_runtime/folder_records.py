"""What the manifests of a folder of results tell: of each scan the line that counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.folder_manifest import MANIFEST_SCHEMA_VERSION, ScanRecord

MANIFESTS = "manifest*.jsonl"


@dataclass(frozen=True)
class FolderRecords:
    """What was read.

    Attributes:
        manifests: Names of the files, sorted.
        records: One a scan, sorted by its path.
        passed_over: Lines that are no record, such as what a killed process left of one.
    """

    manifests: tuple[str, ...]
    records: tuple[ScanRecord, ...]
    passed_over: int


def is_folder_of_results(folder: Path) -> bool:
    """Whether `covidseg segment DIR -o` has written to it."""
    return any(folder.glob(MANIFESTS))


def read_records(folder: Path) -> FolderRecords:
    """Read every manifest of a folder.

    Within a manifest the last line of a scan counts; of several manifests (parts of a run, or runs with another number
    of parts) the one whose line is the youngest.

    Raises:
        VolumeError: If there is no manifest, one cannot be read, or a later covidseg wrote it.
    """
    paths = sorted(folder.glob(MANIFESTS))
    if not paths:
        raise VolumeError(
            f"{folder} holds no manifest.jsonl; give the folder of results of `covidseg segment DIR -o FOLDER`."
        )
    youngest: dict[str, ScanRecord] = {}
    passed_over = 0
    for path in paths:
        of_file, no_records = _read_manifest(path)
        passed_over += no_records
        for scan, record in of_file.items():
            if scan not in youngest or record.finished >= youngest[scan].finished:
                youngest[scan] = record
    records = tuple(youngest[scan] for scan in sorted(youngest))
    return FolderRecords(tuple(path.name for path in paths), records, passed_over)


def refuse_newer(path: Path, version: object, known: int) -> None:
    """Refuse a file of a later schema: its fields may mean something else.

    Raises:
        VolumeError: If `version` is above `known`.
    """
    if isinstance(version, int) and version > known:
        raise VolumeError(
            f"{path} has schema version {version}, this covidseg knows {known} at most; update covidseg to read it."
        )


def _read_manifest(path: Path) -> tuple[dict[str, ScanRecord], int]:
    """The last line of each scan, and how many lines are none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror}.") from error
    records: dict[str, ScanRecord] = {}
    passed_over = 0
    for line in filter(None, lines):
        record = _parse(path, line)
        if record is None:
            passed_over += 1
        else:
            records[record.scan] = record
    return records, passed_over


def _parse(path: Path, line: bytes) -> ScanRecord | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    refuse_newer(path, fields.get("schema_version"), MANIFEST_SCHEMA_VERSION)
    match fields:
        case {
            "scan": str(scan),
            "status": "ok" | "failed" as status,
            "settings": dict(settings),
            "finished": str(when),
        }:
            return ScanRecord(
                scan=scan,
                status=status,
                input=_mapping(fields.get("input")),
                settings=settings,
                finished=when,
                seconds=fields.get("seconds"),
                outputs=_files(fields.get("outputs")),
                measures=_mapping(fields.get("measures")),
                warnings=_texts(fields.get("warnings")),
                error=_text(fields.get("error")),
                exit_code=fields.get("exit_code", 0),
            )
    return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: object) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


def _files(value: object) -> dict[str, dict[str, str]]:
    """Of each output its file and sha256, where both are there."""
    files = {}
    for kind, entry in _mapping(value).items():
        match entry:
            case {"file": str(file), "sha256": str(sha256)}:
                files[kind] = {"file": file, "sha256": sha256}
    return files
