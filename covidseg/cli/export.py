"""`covidseg export`."""

from __future__ import annotations

from pathlib import Path

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.exit_codes import needs_extra


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the new bundle.",
)
@click.option(
    "--scan",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CT on which the engines are compared with torch. [default: a case of the run]",
)
@click.pass_context
def export(ctx: click.Context, run_folder: Path, output: Path, scan: Path | None) -> None:
    """Turn the best checkpoint of RUN into a model bundle.

    Nothing is written unless every engine agrees with torch on a real scan.
    """
    refuse_unknown_options(ctx)
    with needs_extra("export", "Exporting"):
        from covidseg_export.export_run import export_run
    result = export_run(run_folder, output, parity_scan=scan)
    click.echo(f"bundle: {result.bundle_folder}")
    for role, parity in result.parity.items():
        click.echo(
            f"{role}: largest logit difference {parity.max_logit_difference:.1e}, "
            f"{parity.flipped_voxels} of {parity.voxels} labels differ"
        )
