"""`covidseg export`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.exit_codes import needs_extra
from covidseg.cli.progress import phase_progress

if TYPE_CHECKING:
    from covidseg_export.evidence import Evidence
    from covidseg_export.export_run import ExportSettings, FilePrecision, ScanFiles
    from covidseg_export.source import CheckpointChoice, ExportSource
    from covidseg_runtime import ModelBundle

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@dataclass(frozen=True)
class ExportOptions:
    """The options of `covidseg export` as click hands them over."""

    best: Path | None
    ensemble: bool
    checkpoint: CheckpointChoice | None
    output: Path | None
    precision: str
    data: Path | None
    scan: tuple[Path, ...]
    truth: tuple[Path, ...]
    fp16_dsc_change: float
    int8_dsc_change: float
    importance_sigma: float | None
    step: float | None
    force: bool
    name: str | None
    model_version: str
    trt: bool
    triton: Path | None
    weights: Path | None
    decision_fold: tuple[Path, ...]
    as_trained: bool
    fold: tuple[str, ...]
    external: tuple[str, Path] | None
    against: tuple[str, ...]
    licence: str | None


@click.command()
@click.argument("source", metavar="[RUN|BUNDLE]", required=False)
@click.option(
    "--best",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Pick the best of a study or of a folder of runs, by mean validation DSC, then NSD, then size.",
)
@click.option(
    "--ensemble", is_flag=True, help="With --best: all folds of the best as one graph, probabilities averaged."
)
@click.option(
    "--checkpoint",
    type=click.Choice(["best", "last"]),
    help="Weights of the run: the best on its validation cases, or the last. [default: last of a study's cell, which "
    "is what the study measured; else best]",
)
@click.option("-o", "--output", type=_FOLDER, help="Folder of the new bundle.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="LIST",
    help="Graphs to write: fp32, and any of fp16 and int8, parted by commas.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="COVIDSEG_DATA",
    help="Folder of the training's data set. [default: as the run says]",
)
@click.option(
    "--scan",
    multiple=True,
    type=_FILE,
    help="CT to compare with torch on; may be repeated. [default: two held-out cases]",
)
@click.option("--truth", multiple=True, type=_FILE, help="Infection mask of the CT, in the order of --scan.")
@click.option(
    "--fp16-dsc-change",
    type=click.FloatRange(min=0),
    default=0.001,
    show_default=True,
    help="Largest change of the DSC that fp16 may cost.",
)
@click.option(
    "--int8-dsc-change", type=click.FloatRange(min=0), default=0.005, show_default=True, help="Likewise int8 and bf16."
)
@click.option(
    "--importance-sigma",
    type=click.FloatRange(min=0, min_open=True, max=10),
    help="How wide the middle of a tile counts, as a share of the tile. [default: as trained]",
)
@click.option(
    "--step",
    type=click.FloatRange(min=0.1, max=1),
    help="Distance of neighbouring tiles, as a share of the tile. [default: as trained]",
)
@click.option("--force", is_flag=True, help="Write the bundle even so; it then says what is outside the limits.")
@click.option("--name", help="Name that the bundle gets. [default: the experiment's]")
@click.option("--model-version", default="0.2.0", show_default=True, help="Version that the bundle gets.")
@click.option("--trt", is_flag=True, help="Build TensorRT plans for this machine's GPU into the user's cache.")
@click.option("--triton", type=_FOLDER, metavar="DIR", help="Also write a model repository for Triton.")
@click.option(
    "--weights",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the bundle's weights for transfer.checkpoint, to fine-tune from them (.safetensors).",
)
@click.option(
    "--decision-fold",
    multiple=True,
    metavar="RUN",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another fold of the recipe: where infection begins is chosen on the cases it held out; may be repeated. "
    "[default: on the cases that validated the training]",
)
@click.option(
    "--as-trained",
    is_flag=True,
    help="Infection begins where the network says so; with --decision-fold those cases set the temperature alone.",
)
@click.option(
    "--fold",
    multiple=True,
    metavar="BUNDLE",
    help="Bundle of another fold of the same recipe, whose held-out cases tell what the recipe is worth; may be "
    "repeated.",
)
@click.option(
    "--external",
    type=(str, click.Path(exists=True, file_okay=False, path_type=Path)),
    metavar="DATASET DIR",
    help="Also measure on every case of this data set, from which the training learned nothing.",
)
@click.option(
    "--against", multiple=True, metavar="BUNDLE", help="Set its results on cases of --external beside; may be repeated."
)
@click.option(
    "--licence", help="Licence of the weights, where yours is another than that of the data set. The data's are listed."
)
@click.pass_context
def export(ctx: click.Context, /, source: str | None, **options: Any) -> None:  # noqa: ANN401 - see ExportOptions
    """Turn a trained network into a model bundle: RUN is a folder of `covidseg train`, BUNDLE an earlier bundle.

    Nothing is written unless every graph, in every engine of this machine, agrees with torch on real scans.
    Without -o, --trt, --triton and --weights serve a bundle as it is.
    """
    refuse_unknown_options(ctx)
    wanted = ExportOptions(**options)
    if (source is None) == (wanted.best is None):
        raise click.UsageError("give either a RUN or BUNDLE, or --best FOLDER")
    if wanted.ensemble and wanted.best is None:
        raise click.UsageError("--ensemble goes with --best FOLDER")
    bundle = _export(source, wanted) if wanted.output is not None else _existing(source, wanted)
    if wanted.trt:
        _build_plans(bundle)
    if wanted.triton is not None:
        _write_triton(bundle, wanted.triton)
    if wanted.weights is not None:
        _write_weights(bundle, wanted.weights)


def _export(source: str | None, wanted: ExportOptions) -> ModelBundle:
    """Write the bundle and read it back."""
    with needs_extra("export", "Exporting"):
        from covidseg_export.export_run import export_bundle
    from covidseg_runtime import load_bundle

    if wanted.output is None:
        raise click.UsageError("give the folder of the new bundle: -o BUNDLE")
    settings = _settings(wanted)
    result = export_bundle(_source(source, wanted), wanted.output, settings, click.echo)
    click.echo(f"bundle: {result.bundle_folder}")
    if result.description["parity"]["forced"]:
        click.echo("Warning: written by force, outside the limits; bundle.json and the model card say so.", err=True)
    return load_bundle(result.bundle_folder)


def _settings(wanted: ExportOptions) -> ExportSettings:
    from covidseg_export.export_run import ExportSettings
    from covidseg_export.parity import ParityLimits

    return ExportSettings(
        precisions=tuple(cast("FilePrecision", name.strip()) for name in wanted.precision.split(",")),  # checked there
        scans=_scans(wanted),
        limits=ParityLimits(f16_dsc_change=wanted.fp16_dsc_change, int8_dsc_change=wanted.int8_dsc_change),
        outside_limits="write" if wanted.force else "refuse",
        decision_folds=_decision_folds(wanted),
        evidence=_evidence(wanted),
    )


def _decision_folds(wanted: ExportOptions) -> tuple[ExportSource, ...]:
    from covidseg_export.source import read_run

    return tuple(
        read_run(folder, version=wanted.model_version, data_root=wanted.data, which=wanted.checkpoint)
        for folder in wanted.decision_fold
    )


def _evidence(wanted: ExportOptions) -> Evidence:
    from covidseg_export.evidence import Evidence, ExternalSet
    from covidseg_runtime import find_bundle, load_bundle
    from covidseg_train.datasets.catalog import get_dataset

    if wanted.against and wanted.external is None:
        raise click.UsageError("--against goes with --external DATASET DIR")
    external = None
    if wanted.external is not None:
        external = ExternalSet(get_dataset(wanted.external[0]), wanted.external[1])
    folds, against = (tuple(load_bundle(find_bundle(one)) for one in names) for names in (wanted.fold, wanted.against))
    return Evidence(folds, external, against)


def _scans(wanted: ExportOptions) -> tuple[ScanFiles, ...]:
    from covidseg_export.export_run import ScanFiles

    if wanted.truth and len(wanted.truth) != len(wanted.scan):
        raise click.UsageError("give one --truth for every --scan, in the same order, or none")
    truths = wanted.truth or (None,) * len(wanted.scan)
    return tuple(ScanFiles(ct, truth) for ct, truth in zip(wanted.scan, truths, strict=True))


def _source(source: str | None, wanted: ExportOptions) -> ExportSource:
    """The network, with another name, step or importance map if one was asked for."""
    found = _read_source(source, wanted)
    plan = replace(
        found.tile_plan,
        step=wanted.step or found.tile_plan.step,
        importance_sigma=wanted.importance_sigma or found.tile_plan.importance_sigma,
    )
    return replace(
        found,
        name=wanted.name or found.name,
        licence=wanted.licence or found.licence,
        tile_plan=plan,
        decision={} if wanted.as_trained else found.decision,
    )


def _read_source(source: str | None, wanted: ExportOptions) -> ExportSource:
    from covidseg_export.source import read_bundle, read_ensemble, read_run
    from covidseg_runtime import find_bundle, load_bundle

    reading: dict[str, Any] = {
        "version": wanted.model_version,
        "data_root": wanted.data,
        "which": wanted.checkpoint,
    }
    if wanted.best is not None:
        from covidseg_export.best_run import rank_runs, table_lines

        scores = rank_runs(wanted.best)
        for line in table_lines(scores):
            click.echo(line)
        runs = [run.folder for run in scores[0].runs]
        chosen = f"all {len(runs)} folds" if wanted.ensemble else f"its best fold {runs[0].name}"
        click.echo(f"chosen: {scores[0].arm}, {chosen}")
        if wanted.ensemble:
            return read_ensemble(runs, **reading)
        return read_run(runs[0], **reading)
    folder = Path(str(source))
    if folder.is_dir() and not (folder / "bundle.json").is_file():
        return read_run(folder, **reading)
    if wanted.checkpoint is not None or wanted.as_trained:
        raise click.UsageError(
            "--checkpoint and --as-trained go with a RUN; a bundle keeps its weights and its decision"
        )
    return read_bundle(load_bundle(find_bundle(source)), version=wanted.model_version, data_root=wanted.data)


def _existing(source: str | None, wanted: ExportOptions) -> ModelBundle:
    from covidseg_runtime import find_bundle, load_bundle

    if source is None or not (wanted.trt or wanted.triton or wanted.weights):
        raise click.UsageError("give the folder of the new bundle: -o BUNDLE")
    return load_bundle(find_bundle(source))


def _build_plans(bundle: ModelBundle) -> None:
    """One plan a graph; needs neither torch nor onnx."""
    from covidseg_export.to_tensorrt import BuilderOptions, build_plan

    for file in bundle.files:
        if file.role != "model":
            continue
        click.echo(f"building the TensorRT plan of {file.name}; this takes minutes", err=True)
        with phase_progress() as on_progress:
            plan = build_plan(bundle.folder / file.name, BuilderOptions(), on_progress=on_progress)
        click.echo(f"plan: {plan}")


def _write_triton(bundle: ModelBundle, folder: Path) -> None:
    with needs_extra("export", "Writing a model repository"):
        from covidseg_export.triton import write_model_repository
    for path in write_model_repository(bundle, folder):
        click.echo(f"triton: {path}")


def _write_weights(bundle: ModelBundle, file: Path) -> None:
    with needs_extra("export", "Writing weights"):
        from covidseg_export.fine_tuning import write_weights
    write_weights(bundle, file)
    click.echo(f"weights: {file}")
