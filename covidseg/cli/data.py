"""`covidseg data list`, `fetch`, `verify`, `import`, `fingerprint` and `simulate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.exit_codes import UNSUITABLE_INPUT, USAGE, CommandError, needs_extra

if TYPE_CHECKING:
    from covidseg_train.datasets.dataset import Dataset, Download
    from covidseg_train.datasets.downloading import Listener
    from covidseg_train.datasets.fetching import FetchedFile


_FOLDER = click.Path(file_okay=False, path_type=Path)
_data_option = click.option(
    "--data",
    "data_root",
    envvar="COVIDSEG_DATA",
    type=_FOLDER,
    default="data",
    help="Folder below which the data sets lie; also COVIDSEG_DATA. [default: data]",
)
_output_option = click.option("-o", "--output", type=_FOLDER, help="Folder of this data set. [default: NAME in --data]")


@click.group()
@click.pass_context
def data(ctx: click.Context) -> None:
    """List, fetch, verify and import data sets.

    Each has a licence of its own, which `fetch` shows.
    """
    tables = ctx.default_map or {}
    for name, table in tables.items():
        if name not in data.commands or not isinstance(table, dict):
            raise click.UsageError(f"the configuration file has [data] {name}, which is no table of its commands")
    ctx.default_map = {
        name: {option.replace("-", "_"): value for option, value in table.items()} for name, table in tables.items()
    }


@data.command("list")
@_data_option
@click.option("--json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_sets(ctx: click.Context, data_root: Path, *, json: bool) -> None:
    """List the data sets, and how many cases of each are there."""
    refuse_unknown_options(ctx)
    with needs_extra("train", "Listing data sets"):
        from covidseg_train.datasets.catalog import DATASETS
    entries = [_entry(dataset, data_root / dataset.name) for dataset in DATASETS.values()]
    if json:
        click.echo(dumps(entries, indent=2, ensure_ascii=False))
        return
    for entry in entries:
        _print_entry(entry)


@data.command()
@click.argument("name")
@_data_option
@_output_option
@click.option("--accept-licence", is_flag=True, help="Accept the licence without being asked.")
@click.pass_context
def fetch(ctx: click.Context, name: str, data_root: Path, output: Path | None, *, accept_licence: bool) -> None:
    """Fetch the data set NAME, check it against its published hashes, and unpack it.

    After a stop the same command goes on where it was. With COVIDSEG_OFFLINE=1 nothing is fetched.
    """
    refuse_unknown_options(ctx)
    dataset, root = _find(name, data_root, output)
    from covidseg_train.datasets.fetching import fetch_dataset, missing_downloads

    if not dataset.downloads:
        raise CommandError(
            f"{dataset.name} cannot be fetched. {dataset.how_to_get} Then: covidseg data import {dataset.name} "
            "--from-local FOLDER",
            USAGE,
        )
    missing = missing_downloads(dataset, root)
    if missing:
        _print_terms(dataset, missing)
        _require_accepted(accept_licence=accept_licence)
        with _listening() as listener:
            fetched = fetch_dataset(dataset, root, listener)
        _print_files(fetched)
    else:
        click.echo("Everything is there already.", err=True)
    _print_cases(dataset, root)


@data.command("import")
@click.argument("name")
@click.option(
    "--from-local",
    "folder",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that holds the set's archives, or its files laid out as published.",
)
@_data_option
@_output_option
@click.pass_context
def import_set(ctx: click.Context, name: str, folder: Path, data_root: Path, output: Path | None) -> None:
    """Take the data set NAME from this disk.

    Archives are checked and unpacked; other files become hard links where the disk allows it, otherwise copies.
    """
    refuse_unknown_options(ctx)
    dataset, root = _find(name, data_root, output)
    from covidseg_train.datasets.fetching import import_local

    with _listening() as listener:
        imported = import_local(dataset, folder, root, listener)
    _print_files(imported)
    _print_cases(dataset, root)


@data.command()
@click.argument("name")
@_data_option
@_output_option
@click.pass_context
def verify(ctx: click.Context, name: str, data_root: Path, output: Path | None) -> None:
    """Check the files of the data set NAME and read every case.

    Ends with exit code 3 if something is wrong.
    """
    refuse_unknown_options(ctx)
    dataset, root = _find(name, data_root, output)
    from covidseg_train.datasets.fetching import find_problems

    problems = 0
    with _listening() as listener:
        for problem in find_problems(dataset, root, listener):
            problems += 1
            click.echo(" ".join(problem.split()))
    click.echo(f"{root}: {_count(problems, 'problem')}")
    if problems:
        ctx.exit(UNSUITABLE_INPUT)
    _print_cases(dataset, root)


@data.command()
@click.argument("name")
@_data_option
@_output_option
@click.option("--case", "cases", multiple=True, help="A case to measure; give it again for more. [default: all]")
@click.pass_context
def fingerprint(ctx: click.Context, name: str, data_root: Path, output: Path | None, cases: tuple[str, ...]) -> None:
    """Measure spacing and lesion intensities of the data set NAME.

    Prints the section [grid] of an experiment, by the rules of nnU-Net. Measure the training cases of the target
    only, and use its grid for the sets that are pre-trained on.
    """
    refuse_unknown_options(ctx)
    dataset, root = _find(name, data_root, output)
    with needs_extra("train", "A fingerprint"):
        from covidseg_train.datasets.dataset import find_named_cases
        from covidseg_train.fingerprint import grid_as_toml, measure_fingerprint, plan_grid
    measured = measure_fingerprint(dataset, find_named_cases(dataset, root, cases))
    click.echo(f"# {dataset.name}, {_count(measured.cases, 'case')}: {measured.describe()}")
    click.echo(grid_as_toml(plan_grid(measured)))


@data.command()
@click.argument("hosts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o", "--output", required=True, type=_FOLDER, help="Folder of the simulated cases; those of one name are replaced."
)
@click.option("--per-host", type=click.IntRange(min=1), default=4, show_default=True, help="Simulated cases a host.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.pass_context
def simulate(ctx: click.Context, hosts: tuple[Path, ...], output: Path, per_host: int, seed: int) -> None:
    """Put simulated infection into the chest CTs HOSTS (.nii or .nii.gz).

    The cases are of the data set simulated-infection and name their host. Infection that is marked beside a host
    (<case>_ct.nii.gz, <case>_infection.nii.gz) stays as it is and is marked in the simulated case as well.
    """
    refuse_unknown_options(ctx)
    with needs_extra("train", "Simulating infection"):
        from covidseg_train.simulated_cases import write_simulated_cases
    output.mkdir(parents=True, exist_ok=True)
    write_simulated_cases(hosts, output, per_host=per_host, seed=seed)
    click.echo(f"{output}: {_count(per_host * len(hosts), 'simulated case')}")


def _find(name: str, data_root: Path, output: Path | None) -> tuple[Dataset, Path]:
    """The data set of a name, and its folder."""
    with needs_extra("train", "A data set"):
        from covidseg_train.datasets.catalog import get_dataset
    dataset = get_dataset(name)
    return dataset, output or data_root / dataset.name


def _entry(dataset: Dataset, root: Path) -> dict[str, Any]:
    from covidseg_runtime.errors import CovidsegError

    cases, problem = 0, None
    try:
        cases = len(dataset.find_cases(root))
    except CovidsegError as exc:
        problem = str(exc)
    texts = ("name", "title", "lesion", "licence", "citation", "homepage", "limits", "is_simulated", "how_to_get")
    return {
        **{field: getattr(dataset, field) for field in texts},
        "downloads": [asdict(download) for download in dataset.downloads],
        "folder": str(root),
        "cases": cases,
        "problem": problem,
    }


def _print_entry(entry: dict[str, Any]) -> None:
    simulated = " (simulated, no patient's lesions)" if entry["is_simulated"] else ""
    cases = f"{_count(entry['cases'], 'case')} in {entry['folder']}"
    click.echo(f"{entry['name']}: {entry['title']}{simulated}")
    click.echo(f"  lesion   {entry['lesion']}")
    click.echo(f"  licence  {entry['licence']}")
    click.echo(f"  here     {entry['problem'] or cases}")
    if entry["downloads"]:
        click.echo(f"  get      covidseg data fetch {entry['name']}")
    if entry["how_to_get"]:
        click.echo(f"  get      {entry['how_to_get']}")


def _print_terms(dataset: Dataset, downloads: tuple[Download, ...]) -> None:
    for label, text in (
        ("data set", f"{dataset.title} ({dataset.homepage})"),
        ("licence", dataset.licence),
        ("cite", dataset.citation),
        ("limits", dataset.limits),
    ):
        if text:
            click.echo(f"{label:<9} {text}", err=True)
    for download in downloads:
        size = "size not published" if download.size_bytes is None else f"{download.size_bytes:,} bytes"
        click.echo(f"{'download':<9} {download.file_name}, {size}, from {download.url}", err=True)


def _require_accepted(*, accept_licence: bool) -> None:
    if accept_licence:
        return
    if not sys.stdin.isatty():
        raise CommandError("the licence has to be accepted: read it above and add --accept-licence", USAGE)
    if not click.confirm("Do you accept the licence?", err=True):
        raise CommandError("the licence was not accepted; nothing was fetched", USAGE)


def _print_files(files: tuple[FetchedFile, ...]) -> None:
    for file in files:
        standing = "as published" if file.is_verified else "not verified: no hash was published, this one is recorded"
        click.echo(f"{file.file_name}: {_count(len(file.files), 'file')}, sha256 {file.sha256} ({standing})")


def _print_cases(dataset: Dataset, root: Path) -> None:
    cases = dataset.find_cases(root)
    click.echo(f"{root}: {_count(len(cases), 'case')}")
    if not cases:
        click.echo(dataset.how_to_get or f"No case of {dataset.name} was found in its files.", err=True)


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


@contextmanager
def _listening() -> Iterator[Listener]:
    """Lines on stderr, and bars of bytes or cases below them on a terminal."""
    from covidseg_train.datasets.downloading import Listener

    if not sys.stderr.isatty():
        yield Listener(say=lambda line: click.echo(line, err=True), progress=lambda name, done, total: None)
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, done="")
            is_count = name in ("cases", "files")
            bars.update(tasks[name], completed=done, total=total, done=str(done) if is_count else decimal(done))

        yield Listener(say=lambda line: bars.console.print(line, markup=False, highlight=False), progress=show)
