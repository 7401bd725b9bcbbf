"""`covidseg segment`."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.config_file import refuse_unknown_options
from covidseg.cli.interruption import sigterm_interrupts
from covidseg.cli.progress import tile_progress
from covidseg.cli.scan_input import ReadingOptions, judge_input, read_scan
from covidseg.cli.segment_files import OutputFiles, plan_files, write_files
from covidseg.cli.segment_options import (
    SegmentOptions,
    dicom_object_options,
    parse_output_type,
    parse_window,
    plan_spool,
    ray_options,
    resolve_deterministic,
    wanted_segmenter,
    within_memory,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from covidseg_runtime import Segmentation, Volume
    from covidseg_runtime.scan_kind import ScanKind

_SCAN = click.Path(exists=True, path_type=Path)
_TRUTH = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUTPUT = click.Path(dir_okay=False, path_type=Path)
_DEFAULT_MIN_LESION_ML = 0.05


@click.command()
@click.argument("scan", metavar="SCAN|DIR", type=_SCAN)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Label map, .nii.gz or .nii; for DIR a folder. [default: <SCAN>_covidseg.nii.gz in this folder]",
)
@click.option(
    "--model",
    metavar="NAME|DIR",
    help="A shipped model, see `covidseg models`, or the folder of a bundle.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:n.")
@click.option(
    "--engine",
    type=click.Choice(("auto", "openvino", "onnxruntime", "tensorrt")),
    default="auto",
    show_default=True,
    help="What computes; see `covidseg check`.",
)
@click.option(
    "--precision",
    type=click.Choice(("auto", "f32", "bf16", "f16", "int8")),
    default="auto",
    show_default=True,
    help="What is computed in; auto is the fastest that passed the model's comparison.",
)
@click.option(
    "--quality",
    type=click.Choice(("fast", "balanced", "best")),
    default="balanced",
    show_default=True,
    help="How much work a scan is worth.",
)
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="CPU threads. [default: the engine's choice]")
@click.option(
    "--max-memory",
    metavar="MIB",
    type=click.IntRange(min=1),
    help="Keep the scan on disk, and end the run if it takes more memory all the same.",
)
@click.option(
    "--deterministic",
    is_flag=True,
    help="The same bits over runs and numbers of threads: ONNX Runtime, f32, CPU.",
)
@click.option(
    "-ot",
    "--output-type",
    metavar="LIST",
    default="nifti",
    show_default=True,
    type=parse_output_type,
    help="nifti, dicom (a folder with SEG, SR and picture beside the label map), or nifti,dicom.",
)
@click.option("--series", metavar="UID", help="Of DICOM: the series. [default: the axial chest CT with most slices]")
@click.option("--shear-tilt", is_flag=True, help="Of DICOM: undo a gantry tilt by shifting the slices.")
@dicom_object_options
@click.option("--report", type=_OUTPUT, help="JSON report. [default: beside the label map]")
@click.option("--preview", type=_OUTPUT, help="Also draw slices with the labels as PNG.")
@click.option("--probability", type=_OUTPUT, help="Also write the infection's probability, .nii.gz or .nii.")
@click.option("--truth", type=_TRUTH, help="Also compare with this label map or infection mask.")
@click.option(
    "--window",
    metavar="LOW,HIGH",
    type=parse_window,
    help="The scan is no HU but this window of them, scaled to 0-255: --window=-1250,250.",
)
@click.option(
    "--min-lesion-ml",
    type=click.FloatRange(min=0),
    default=_DEFAULT_MIN_LESION_ML,
    show_default=True,
    help="Smaller infections become lung again.",
)
@click.option("--num-parts", type=click.IntRange(min=1), default=1, help="Share DIR between so many processes.")
@click.option("--part-id", type=click.IntRange(min=0), default=0, help="The share of this one, from 0.")
@ray_options
@click.option("--overwrite", is_flag=True, help="Do again what is done in DIR.")
@click.option("--json", is_flag=True, help="Print the report, and nothing else, as JSON.")
@click.pass_context
def segment(ctx: click.Context, /, scan: Path, **options: Any) -> None:  # noqa: ANN401 - see SegmentOptions
    """Label lungs and infection on the chest CT SCAN, or on each NIfTI file in and below DIR.

    SCAN is NIfTI, a DICOM series (folder, zip or multi-frame file; extra `dicom`), NRRD or MetaImage (extra `itk`).

    Labels: 1 left lung, 2 right lung, 3 infection. Research use only; not a medical device.
    Opacities are not specific to COVID-19.
    """
    refuse_unknown_options(ctx)
    wanted = resolve_deterministic(SegmentOptions(**options))
    kind = judge_input(scan, wanted)
    if kind == "folder":
        from covidseg.cli.segment_folder import segment_folder

        segment_folder(scan, wanted)
        return
    files = plan_files(scan, wanted)
    with sigterm_interrupts():
        report = run_segment(scan, kind, wanted, files)
    if wanted.json:
        click.echo(dumps(report, indent=2))
    else:
        _print_summary(report, files)


def run_segment(path: Path, kind: ScanKind, options: SegmentOptions, files: OutputFiles) -> dict[str, Any]:
    """Read, segment, and write every result; the report comes back."""
    from covidseg_runtime import build_report, describe_scan
    from covidseg_runtime.report import describe_choice

    spool = plan_spool(options, files.report.parent)
    scan = read_scan(path, kind, ReadingOptions(options.series, options.shear_tilt, options.window), spool)
    truth = _read_truth(options, scan.volume)
    with wanted_segmenter(options, spool).open() as segmenter:
        click.echo(describe_choice(segmenter), err=True)
        with tile_progress() as on_progress:
            segmentation = segmenter.segment(scan.volume, within_memory(options, on_progress))
        # A folder of DICOM is often called after the patient; its series is not.
        name = path.name if scan.source is None else scan.source.series_uid
        report = build_report(segmentation, segmenter.bundle, segmenter.engine, describe_scan(name, scan.volume))
    report["settings"] = segmenter.settings.describe()
    report["dice"] = _dice(segmentation, truth)
    write_files(options, files, scan, segmentation, report, truth)
    _print_cost(segmentation)
    for warning in segmentation.warnings:
        click.echo(f"Warning: {warning}", err=True)
    return report


def _read_truth(options: SegmentOptions, volume: Volume) -> NDArray[np.uint8] | None:
    if options.preview is not None:
        from covidseg_runtime.preview import import_pillow

        import_pillow()  # better refused now than after minutes of work
    if options.truth is None:
        return None
    from covidseg_runtime import read_label_map
    from covidseg_runtime.evaluation import align_truth

    return align_truth(volume, read_label_map(options.truth))


def _dice(segmentation: Segmentation, truth: NDArray[np.uint8] | None) -> dict[str, Any] | None:
    if truth is None:
        return None
    from covidseg_runtime.bundle import LABELS
    from covidseg_runtime.evaluation import dice_by_label
    from covidseg_runtime.report import plain_json

    scores = dice_by_label(segmentation.labels, truth)
    return {LABELS[label]: plain_json(score) for label, score in scores.items()}


def _print_summary(report: dict[str, Any], files: OutputFiles) -> None:
    measures = report["measures"]
    percent = measures["infection_percent"]["whole"]
    lung_ml = measures["lung_volume_ml"]["whole"]
    click.echo(f"lung volume        {'unknown' if lung_ml is None else f'{lung_ml:.0f} mL'}")
    click.echo(f"infection volume   {measures['infection_volume_ml']['whole']:.1f} mL{_range_of(report)}")
    click.echo(f"infected lung      {'unknown' if percent is None else f'{percent:.1f} %'}")
    for name, score in (report["dice"] or {}).items():
        click.echo(f"DSC {name:<14} {'undefined' if score is None else f'{score:.4f}'}")
    for path in files.all:
        click.echo(f"written            {path}")
    click.echo(report["notice"])


def _range_of(report: dict[str, Any]) -> str:
    found = report["uncertainty"]["infection_volume_ml"]
    if found is None or not found["high_ml"]:  # 0.0 to 0.0 mL would say that nothing was missed
        return ""
    low, high = f"{found['low_ml']:.1f}", f"{found['high_ml']:.1f}"
    return f" (as {found['share']:.0%} of {found['cases']} held-out cases: {low} to {high} mL)"


def _print_cost(segmentation: Segmentation) -> None:
    seconds = sum(segmentation.timings_s.values())
    from covidseg_runtime.process_memory import peak_memory_mib

    memory = peak_memory_mib()
    peak = "" if memory is None else f", peak memory {memory:.0f} MiB"
    click.echo(f"segmented in {seconds:.1f} s{peak}", err=True)
