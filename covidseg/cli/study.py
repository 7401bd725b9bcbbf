"""`covidseg study`."""

from __future__ import annotations

from pathlib import Path

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.exit_codes import needs_extra


@click.command()
@click.argument("study_name", metavar="STUDY")
@click.option(
    "--data",
    envvar="COVIDSEG_DATA",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default="data",
    help="Folder below which the data sets lie; also COVIDSEG_DATA.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the study; what is done there is not done again. [default: runs/<name of STUDY>]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:n.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of this process. [default: all]")
@click.option(
    "--cells",
    multiple=True,
    metavar="PATTERN",
    help="Train only the cells whose folder's name fits, such as 'fold0-*' or '*-hybrid-*'; may be repeated.",
)
@click.option("--report-only", is_flag=True, help="Write table and plots of the cells that are finished.")
@click.pass_context
def study(  # noqa: PLR0913  (one parameter an option)
    ctx: click.Context,
    study_name: str,
    data: Path,
    output: Path | None,
    device: str,
    threads: int | None,
    cells: tuple[str, ...],
    report_only: bool,  # noqa: FBT001  (click passes options by name)
) -> None:
    """Compare transfer strategies: sources × strategies × folds.

    STUDY is the name of a shipped study (few-shot) or a .toml file. Start the command again to go on after a stop;
    start it several times at once, on several devices, to share the work.
    """
    refuse_unknown_options(ctx)
    if report_only and cells:
        raise click.UsageError("--cells chooses what is trained, and --report-only trains nothing; give one of them.")
    with needs_extra("train", "A study"):
        import torch

        from covidseg_train.study import Places, collect_results, run_study
        from covidseg_train.study_config import load_study
        from covidseg_train.study_report import write_study_report
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_study(study_name)
    places = Places(study=output or Path("runs") / Path(study_name).stem, data=data)
    if report_only:
        collect_results(loaded, places)
    else:
        run_study(loaded, places, device=device, report=lambda line: click.echo(line, err=True), only=cells)
    for path in write_study_report(loaded, places.study):
        click.echo(str(path))
