"""`covidseg check`."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.config_file import refuse_unknown_options

if TYPE_CHECKING:
    from covidseg_runtime import EngineInfo


@click.command()
@click.option("--json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(ctx: click.Context, *, json: bool) -> None:
    """Show the engines, devices and precisions of this machine, and which would be chosen."""
    refuse_unknown_options(ctx)
    from covidseg_runtime.engines import available_engines, engine_candidates

    engines = available_engines()
    usable = {info.name for info in engines if info.problem is None}
    choices = [choice for choice in engine_candidates("auto", "auto") if choice.name in usable]
    order = [{"engine": choice.name, "device": choice.device} for choice in choices]
    if json:
        report: dict[str, Any] = {"engines": [asdict(info) for info in engines], "order": order}
        click.echo(dumps(report, indent=2))
        return
    for info in engines:
        click.echo(_line(info))
    tried = ", then ".join(f"{choice['engine']} on {choice['device']}" for choice in order)
    click.echo(
        f"auto: {tried or 'no engine is installed'}; the fastest precision that the model's parity report allows"
    )


def _line(info: EngineInfo) -> str:
    if info.problem is not None:
        return f"{info.name:<12} not usable: {info.problem}"
    devices, precisions = ", ".join(info.devices), ", ".join(info.precisions)
    return f"{info.name:<12} {info.version}  devices: {devices}  precisions: {precisions}"
