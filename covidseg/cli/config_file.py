"""The configuration file: defaults for options, one TOML table for each command.

[segment]
device = "cuda:0"
min-lesion-ml = 0.1
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

LOCAL_FILE = Path("covidseg.toml")


def read_config_file(path: Path | None, commands: Sequence[str]) -> dict[str, Any]:
    """The defaults of every command, as click's `default_map`.

    Args:
        path: The file; None looks for ./covidseg.toml, then ~/.config/covidseg/config.toml. The
            first that exists is taken alone; without either there are no defaults.
        commands: The names that a table may have.

    Raises:
        click.UsageError: if the file is not TOML or has a table of another name.
    """
    found = path or _find()
    if found is None:
        return {}
    try:
        tables = tomllib.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:  # tomllib's and Unicode's errors are ValueErrors
        raise click.UsageError(f"{found} cannot be read: {exc}") from exc
    return {name: _options(found, name, table, commands) for name, table in tables.items()}


def refuse_unknown_options(ctx: click.Context) -> None:
    """Check that the file names no option which the running command does not have.

    Raises:
        click.UsageError: naming the option.
    """
    known = {parameter.name for parameter in ctx.command.params}
    unknown = sorted(set(ctx.default_map or {}) - known)
    if unknown:
        raise click.UsageError(
            f"the configuration file has [{ctx.info_name}] {unknown[0]}, which `covidseg {ctx.info_name}` does not know"
        )


def _find() -> Path | None:
    for candidate in (LOCAL_FILE, Path("~/.config/covidseg/config.toml").expanduser()):
        if candidate.is_file():
            return candidate
    return None


def _options(found: Path, name: str, table: object, commands: Sequence[str]) -> dict[str, Any]:
    if name not in commands or not isinstance(table, dict):
        raise click.UsageError(f"{found}: {name!r} is not a table [{'] ['.join(commands)}]")
    return {option.replace("-", "_"): value for option, value in table.items()}
