"""TOML files as frozen dataclasses: sections are dataclasses, keys their fields; what is unknown is refused by name."""

import dataclasses
import tomllib
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

from covidseg_runtime.errors import SettingsError

T = TypeVar("T")


def read_toml(name_or_path: str | Path, folder: Path, kind: str) -> dict[str, Any]:
    """Read a shipped file by its name, or any file by its path.

    A file may say ``extends = "NAME"``: it then takes over from that file what it does not say itself, section by
    section.

    Args:
        name_or_path: Name of a file in ``folder`` without its ending, or a path that ends in ``.toml``.
        folder: Where the shipped files lie.
        kind: What such a file describes, for the messages.

    Raises:
        SettingsError: If there is no such file, it is not TOML, or it extends itself.
    """
    values: dict[str, Any] = {}
    read: list[str] = []
    base: object = str(name_or_path)
    while base is not None:
        if not isinstance(base, str) or base in read:
            raise SettingsError(f"{name_or_path} extends itself, or no name ({base!r}); name another {kind}.")
        read.append(base)
        extended = _read_one(base, folder, kind)
        base = extended.pop("extends", None)
        values = _overlaid(extended, values)
    return values


def _overlaid(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The base with values in place of its own; sections are laid over each other, lists are replaced."""
    laid = {
        key: _overlaid(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in values.items()
    }
    return {**base, **laid}


def _read_one(name_or_path: str | Path, folder: Path, kind: str) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = folder / f"{name_or_path}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
        raise SettingsError(f"There is no {kind} {str(name_or_path)!r}; give a .toml file or one of: {shipped}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not a TOML file: {error}.") from error


def build_from_dict(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Build a dataclass from a dict, its fields being numbers, strings, tuples or dataclasses.

    Raises:
        SettingsError: If a key is unknown, missing or of the wrong kind; ``where`` names the section.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise SettingsError(f"{where} has no {', '.join(unknown)}; known are {', '.join(fields)}.")
    try:
        return kind(**{name: _convert(fields[name].type, value, name) for name, value in values.items()})
    except TypeError as error:
        raise SettingsError(f"{where} is not complete: {error}.") from error


def _convert(annotation: Any, value: Any, name: str) -> Any:  # noqa: ANN401  (any field type, any TOML value)
    if get_origin(annotation) is UnionType:  # a section that may be missing; a file cannot say None
        (annotation,) = (kind for kind in get_args(annotation) if kind is not NoneType)
    if dataclasses.is_dataclass(annotation):
        return _section(annotation, value, name)
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            raise SettingsError(f"{name} is {value!r}; one of {', '.join(map(str, get_args(annotation)))} fits.")
        return value
    if get_origin(annotation) is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{name} is {value!r}; a list is expected.")
        kinds = get_args(annotation)
        if kinds[-1] is Ellipsis:
            return tuple(_convert(kinds[0], item, name) for item in value)
        if len(kinds) != len(value):
            raise SettingsError(f"{name} has {len(value)} entries; {len(kinds)} are expected.")
        return tuple(_convert(kind, item, name) for kind, item in zip(kinds, value, strict=True))
    number_for_float = annotation is float and isinstance(value, int) and not isinstance(value, bool)
    if not (type(value) is annotation or number_for_float):
        raise SettingsError(f"{name} is {value!r}; a value of type {annotation.__name__} is expected.")
    return float(value) if number_for_float else value


def _section(kind: Any, value: Any, name: str) -> Any:  # noqa: ANN401  (any dataclass, any TOML value)
    if not isinstance(value, dict):
        raise SettingsError(f"[{name}] must be a section, {value!r} was given.")
    return build_from_dict(kind, value, f"[{name}]")
