"""`covidseg benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.exit_codes import USAGE, CommandError, needs_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from covidseg_runtime import ModelBundle, Volume
    from covidseg_runtime.benchmark_rows import Benchmark, Contestant, Row
    from covidseg_runtime.benchmarking import Subject

_PEER, _PEER_PRECISIONS, _PEER_PACKAGES = "monai", ("f32", "bf16"), ("torch", "monai")
_INPUT = click.Path(exists=True, dir_okay=False, path_type=Path)
_TABLE_WIDTH = 88


@dataclass(frozen=True)
class BenchmarkOptions:
    """The options of `covidseg benchmark` as click hands them over."""

    model: str | None
    scan: Path | None
    truth: Path | None
    engine: tuple[str, ...]
    precision: tuple[str, ...]
    device: str
    threads: int | None
    repeats: int
    output: Path
    json: bool


@click.command()
@click.option(
    "--model",
    metavar="NAME|DIR",
    help="A shipped model, see `covidseg models`, or the folder of a bundle.",
)
@click.option("--scan", type=_INPUT, help="The chest CT (NIfTI) that every row segments; needed.")
@click.option("--truth", type=_INPUT, help="Also compare with this label map or infection mask.")
@click.option(
    "--engine",
    multiple=True,
    help=f"Only this engine, or {_PEER} for torch + MONAI; may be given several times. [default: all]",
)
@click.option("--precision", multiple=True, help="Only f32, bf16, f16 or int8; may be given several times.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:n.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each row. [default: the engine's choice]")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Scans a row; the median counts."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder of benchmark.json and benchmark.png. [default: this folder]",
)
@click.option("--json", is_flag=True, help="Print the result, and nothing else, as JSON.")
@click.pass_context
def benchmark(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - see BenchmarkOptions
    """Measure every engine and precision of this machine on one scan.

    Each row has a process of its own: load time, ms per tile, seconds per scan, peak memory, DSC of the infection
    against the float32 reference, installed size. What cannot run is shown with its reason.
    """
    refuse_unknown_options(ctx)
    wanted = BenchmarkOptions(**options)
    if wanted.scan is None:
        raise click.UsageError("give the chest CT that every row has to segment: --scan CT.nii.gz")
    report, measured = run_benchmark(wanted, wanted.scan)
    if wanted.json:
        click.echo(dumps(report, indent=2))
    else:
        _print_table(measured, with_truth=wanted.truth is not None)
    if not measured.measured:
        raise CommandError("no row could be measured", USAGE)
    if not wanted.json:
        for path in _output_files(wanted.output):
            click.echo(f"written  {path}")
        click.echo(report["notice"])


def run_benchmark(options: BenchmarkOptions, scan: Path) -> tuple[dict[str, Any], Benchmark]:
    """Measure every row and write the files; the report comes back beside the rows."""
    from covidseg_runtime import describe_scan, load_bundle, read_volume
    from covidseg_runtime.benchmark_report import benchmark_report
    from covidseg_runtime.benchmark_rows import Selection, Workload, list_contestants
    from covidseg_runtime.benchmarking import measure_contestants
    from covidseg_runtime.bundle import find_bundle
    from covidseg_runtime.preview import import_pillow

    import_pillow()  # better refused now than after minutes of work
    contestants = list_contestants(Selection(options.engine, options.precision, options.device), _peers(options))
    bundle, volume = load_bundle(find_bundle(options.model)), read_volume(scan)
    truth, source = _read_truth(options, volume), describe_scan(scan.name, volume)
    options.output.mkdir(parents=True, exist_ok=True)
    workload = Workload(bundle.folder, scan, repeats=options.repeats, threads=options.threads)

    def announce(number: int, contestant: Contestant) -> None:
        click.echo(f"{number + 1} of {len(contestants)}: {contestant}", err=True)

    measured = measure_contestants(workload, contestants, truth, announce)
    report = benchmark_report(measured, bundle, workload, source)
    if measured.measured:
        _write(options.output, report, measured)
    return report, measured


def open_peer(bundle: ModelBundle, contestant: Contestant, threads: int | None) -> Subject:
    """Open the bundle's network in torch with MONAI around it; runs in the process of its row.

    Raises:
        EngineError: if a package, the device or the precision is missing.
        BundleError: if the network cannot be rebuilt in torch.
    """
    from covidseg_runtime.errors import EngineError

    try:
        with needs_extra("export", "torch + MONAI"):
            import torch

            from covidseg_export.source import load_bundle_network
            from covidseg_train.monai_peer import MonaiPeer
    except CommandError as exc:
        raise EngineError(exc.message) from exc
    if threads is not None:
        torch.set_num_threads(threads)
    network = load_bundle_network(bundle)
    return MonaiPeer(network, bundle, device=contestant.device, precision=contestant.precision)


def _peers(options: BenchmarkOptions) -> tuple[Contestant, ...]:
    from covidseg_runtime.benchmark_rows import Contestant

    opener = f"{__name__}:{open_peer.__name__}"
    return tuple(Contestant(_PEER, precision, options.device, opener, _PEER_PACKAGES) for precision in _PEER_PRECISIONS)


def _read_truth(options: BenchmarkOptions, volume: Volume) -> NDArray[np.bool_] | None:
    if options.truth is None:
        return None
    from covidseg_runtime import read_label_map
    from covidseg_runtime.evaluation import INFECTION, align_truth

    infection: NDArray[np.bool_] = align_truth(volume, read_label_map(options.truth)) == INFECTION
    return infection


def _output_files(folder: Path) -> tuple[Path, Path]:
    return folder / "benchmark.json", folder / "benchmark.png"


def _write(folder: Path, report: dict[str, Any], measured: Benchmark) -> None:
    """Write each file whole or not at all; what may fail in between is made before."""
    from covidseg_runtime.benchmark_chart import render_benchmark_chart
    from covidseg_runtime.volume_files import write_bytes_atomic, write_json

    model, machine = report["model"], report["machine"]
    caption = (
        f"{model['name']} {model['version']} on {report['scan']['file']}",
        f"{machine['cpu']}, {machine['threads']} threads; {', '.join(machine['gpus']) or 'no GPU'}",
        _explain_reference(measured),
    )
    picture = render_benchmark_chart(measured, caption)
    table, chart = _output_files(folder)
    write_json(table, report)
    write_bytes_atomic(chart, picture)


def _print_table(measured: Benchmark, *, with_truth: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("engine", "device"):
        table.add_column(heading, no_wrap=True)
    numbers = (
        "load\ns",
        "tile\nms",
        "scan\ns",
        "scans\n/ hour",
        "peak\nMiB",
        "DSC to\nref.",
        "DSC to\ntruth",
        "size\nMB",
    )
    for heading in numbers:
        if with_truth or "truth" not in heading:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in measured.rows:
        table.add_row(*_cells(row, with_truth=with_truth))
    console = Console()
    # Where nothing says how wide the output is, rich takes 80 columns and cuts the last ones off.
    Console(width=max(console.width, _TABLE_WIDTH)).print(table)
    for row in measured.rows:
        if row.problem is not None:
            click.echo(f"{row.contestant}: {row.problem}")
    click.echo(_explain_reference(measured))


def _cells(row: Row, *, with_truth: bool) -> list[str]:
    measured, contestant = row.measurement, row.contestant
    numbers = [""] * 8
    if measured is not None:
        numbers = [
            f"{measured.load_s:.2f}",
            f"{measured.median_tile_ms:.1f}",
            f"{measured.median_scan_s:.2f}",
            f"{measured.scans_per_hour:.0f}",
            _cell(measured.peak_memory_mib, ".0f"),
            _cell(row.dsc_reference, ".4f"),
            _cell(row.dsc_truth, ".4f"),
            _cell(row.installed_mb, ".0f"),
        ]
    if not with_truth:
        del numbers[-2]
    return [f"{contestant.engine} {contestant.precision}", contestant.device, *(number or "-" for number in numbers)]


def _cell(value: float | None, form: str) -> str:
    # NaN, where neither found any infection, is no number either.
    return "-" if value is None or isnan(value) else format(value, form)


def _explain_reference(measured: Benchmark) -> str:
    if measured.reference is None:
        return "DSC: there is no float32 reference, because none could run."
    return f"DSC: of the infection, the reference is {measured.reference}."
