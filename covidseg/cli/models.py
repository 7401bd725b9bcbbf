"""`covidseg models`."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.exit_codes import MODEL_UNUSABLE

if TYPE_CHECKING:
    from covidseg_runtime import ModelBundle


@click.command()
@click.option("--json", is_flag=True, help="Print JSON.")
@click.pass_context
def models(ctx: click.Context, *, json: bool) -> None:
    """List the model bundles of this installation and verify each.

    Ends with exit code 5 if one of them was altered.
    """
    refuse_unknown_options(ctx)
    from covidseg_runtime import list_bundles

    entries = [_entry(folder) for folder in list_bundles()]
    if json:
        click.echo(dumps(entries, indent=2))
    else:
        for entry in entries:
            _print_entry(entry)
        if not entries:
            click.echo("This installation holds no model bundle.", err=True)
    if any(entry["problem"] for entry in entries):
        ctx.exit(MODEL_UNUSABLE)


def _entry(folder: Path) -> dict[str, Any]:
    from covidseg_runtime import BundleError, load_bundle

    try:
        return {"folder": str(folder), "problem": None, **_describe(load_bundle(folder))}
    except BundleError as exc:
        return {"folder": str(folder), "name": folder.name, "problem": str(exc)}


def _describe(bundle: ModelBundle) -> dict[str, Any]:
    return {
        "name": bundle.name,
        "version": bundle.version,
        "files": {file.name: file.sha256 for file in bundle.files},
        "licence": bundle.card.get("licence"),
        "intended_use": bundle.card.get("intended_use"),
        "metrics": bundle.card.get("metrics"),
    }


def _print_entry(entry: dict[str, Any]) -> None:
    if entry["problem"]:
        click.echo(f"{entry['name']}  UNUSABLE: {entry['problem']}")
        return
    click.echo(f"{entry['name']} {entry['version']}")
    click.echo(f"  folder   {entry['folder']}")
    for name, sha256 in entry["files"].items():
        click.echo(f"  sha256   {sha256}  {name}")
    click.echo(f"  licence  {entry['licence'] or 'not stated'}")
    click.echo(f"  metrics  {dumps(entry['metrics']) if entry['metrics'] else 'none'}")
