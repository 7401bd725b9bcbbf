"""`covidseg train`."""

from __future__ import annotations

from pathlib import Path

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.exit_codes import needs_extra


@click.command()
@click.argument("experiment", metavar="CONFIG")
@click.option(
    "--data",
    envvar="COVIDSEG_DATA",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the data set; also COVIDSEG_DATA. [default: the one in CONFIG]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run; a run of the same configuration is resumed. [default: runs/<name of CONFIG>]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:n.")
@click.pass_context
def train(
    ctx: click.Context,
    experiment: str,
    data: Path | None,
    output: Path | None,
    device: str,
) -> None:
    """Train a network as CONFIG says.

    CONFIG is the name of a shipped configuration (quick, default, permissive, permissive-refined) or a .toml file.
    """
    refuse_unknown_options(ctx)
    run_folder = output or Path("runs") / Path(experiment).stem
    with needs_extra("train", "Training"):
        from covidseg_train.config import load_config
        from covidseg_train.fit import fit
    config = load_config(experiment, data_root=data)
    result = fit(config, run_folder, device=device)
    click.echo(f"run: {result.run_folder}")
    click.echo(f"best checkpoint: {result.best_checkpoint}")
    if result.best_score is not None:
        click.echo(f"best score: {result.best_score:.4f}")
