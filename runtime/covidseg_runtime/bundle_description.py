"""bundle.json: read, judged as JSON, and compared with the checksum it keeps of itself; the values in it by kind."""

from __future__ import annotations

import hashlib
import json
import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covidseg_runtime.errors import BundleError

SCHEMA_VERSION = 1
BUNDLE_FILE = "bundle.json"
_MAX_BUNDLE_BYTES = 4 * 2**20
_LONGEST_VALUE = 200  # of what a message repeats
_OWN_SHA256 = "sha256"


def description_sha256(description: Mapping[str, Any]) -> str:
    """The checksum that bundle.json keeps of itself: of everything in it but that field, whatever its layout."""
    rest = {key: value for key, value in description.items() if key != _OWN_SHA256}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_description(folder: Path) -> Mapping[str, Any]:
    """Read bundle.json.

    Raises:
        BundleError: If it is missing, no JSON object, too large, or of another schema version.
    """
    file = folder / BUNDLE_FILE
    if file.is_symlink():
        raise BundleError(f"{file} is a link; a bundle holds its files itself")
    try:
        if not file.is_file():  # a pipe would be waited for without end
            raise BundleError(f"{folder} is no model bundle: it has no {BUNDLE_FILE}")
        if file.stat().st_size > _MAX_BUNDLE_BYTES:
            raise BundleError(f"{file} is larger than {_MAX_BUNDLE_BYTES} bytes")
        description = json.loads(file.read_text(encoding="utf-8"))
        # Python reads more than JSON is: NaN, and half characters that no report can be written with.
        json.dumps(description, ensure_ascii=False, allow_nan=False).encode()
    except (OSError, ValueError, RecursionError) as exc:
        raise BundleError(f"{file} cannot be read: {str(exc)[:_LONGEST_VALUE]}") from exc
    if not isinstance(description, dict):
        raise BundleError(f"{file} must hold one JSON object")
    version = description.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BundleError(f"{file} has schema version {in_short(version)}; this covidseg reads {SCHEMA_VERSION}")
    return description


def refuse_altered_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Compare a description with the checksum it states.

    Raises:
        BundleError: If they differ.
    """
    # Optional, as a first bundle had none: without the field nothing else can have changed by accident.
    stated = description.get(_OWN_SHA256)
    if stated is not None and stated != description_sha256(description):
        raise BundleError(f"{folder / BUNDLE_FILE} was altered: its content has not the sha256 that it states")


def in_short(value: object) -> str:
    """A value as it can stand in a message, however long or deep it is."""
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = _LONGEST_VALUE
    return shortened.repr(value)


def json_object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under a key.

    Raises:
        BundleError: If it is anything else.
    """
    value = parent.get(key)
    if not isinstance(value, dict):
        raise BundleError(f"{BUNDLE_FILE}: {key} must be an object, not {in_short(value)}")
    return value


def json_text(parent: Mapping[str, Any], key: str) -> str:
    """The text of one line under a key.

    Raises:
        BundleError: If it is anything else.
    """
    value = parent.get(key)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise BundleError(f"{BUNDLE_FILE}: {key} must be a text on one line, not {in_short(value)}")
    return value


def json_number(parent: Mapping[str, Any], key: str) -> float:
    """The finite number under a key.

    Raises:
        BundleError: If it is anything else.
    """
    return _as_number(parent.get(key), key)


def _as_number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise BundleError(f"{BUNDLE_FILE}: {key} must be a finite number, not {in_short(value)}")
    return float(value)


def three_numbers(parent: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """The three finite numbers under a key.

    Raises:
        BundleError: If it is anything else.
    """
    value = parent.get(key)
    if not isinstance(value, list) or len(value) != 3:
        raise BundleError(f"{BUNDLE_FILE}: {key} must be a list of three numbers, not {in_short(value)}")
    first, second, third = (_as_number(number, key) for number in value)
    return first, second, third


def three_integers(parent: Mapping[str, Any], key: str) -> tuple[int, int, int]:
    """The three whole numbers under a key.

    Raises:
        BundleError: If it is anything else.
    """
    numbers = three_numbers(parent, key)
    if any(number != int(number) for number in numbers):
        raise BundleError(f"{BUNDLE_FILE}: {key} must hold integers, not {list(numbers)}")
    first, second, third = (int(number) for number in numbers)
    return first, second, third
