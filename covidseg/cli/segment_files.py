"""Where the results of `covidseg segment` go, and writing them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidseg.cli.exit_codes import needs_extra
from covidseg_runtime.scan_kind import NIFTI_ENDINGS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from covidseg.cli.scan_input import Scan
    from covidseg.cli.segment_options import SegmentOptions
    from covidseg_runtime import Segmentation
    from covidseg_runtime.dicom.results import ResultObject

_OTHER_ENDINGS = (".gz", ".zip", ".dcm", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class OutputFiles:
    """Where the results go.

    Attributes:
        labels: Label map; None where DICOM alone was asked for.
        report: JSON report.
        preview: Picture, if asked for.
        probability: The infection's probability, if asked for.
        dicom: Folder of the DICOM objects, if asked for.
    """

    labels: Path | None
    report: Path
    preview: Path | None
    probability: Path | None
    dicom: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file or folder that will be written."""
        return tuple(path for path in (self.labels, self.report, self.preview, self.probability, self.dicom) if path)


def plan_files(scan: Path, options: SegmentOptions) -> OutputFiles:
    """Decide where results go, before any work is done.

    Raises:
        click.UsageError: if a folder is missing, a result would replace the scan, the truth or
            another result, or options are for a folder.
    """
    if options.num_parts > 1 or options.part_id or options.overwrite:
        raise click.UsageError("--num-parts, --part-id and --overwrite are for a folder of scans")
    labels = options.output or Path(f"{stem(scan)}_covidseg.nii.gz")
    if not labels.name.endswith(NIFTI_ENDINGS):
        raise click.UsageError(f"the label map {labels} must end in .nii.gz or .nii")
    if options.probability is not None and not options.probability.name.endswith(NIFTI_ENDINGS):
        raise click.UsageError(f"the probability {options.probability} must end in .nii.gz or .nii")
    files = OutputFiles(
        labels=labels if "nifti" in options.output_type else None,
        report=options.report or labels.with_name(f"{stem(labels)}.json"),
        preview=options.preview,
        probability=options.probability,
        dicom=labels.with_name(f"{stem(labels)}_dicom") if "dicom" in options.output_type else None,
    )
    _judge_places(files, [path.resolve() for path in (scan, options.truth) if path])
    if options.preview is not None and options.preview.suffix.lower() != ".png":
        raise click.UsageError(f"the picture {options.preview} must end in .png")
    return files


def _judge_places(files: OutputFiles, taken: list[Path]) -> None:
    for path in files.all:
        if path == files.dicom:
            if path.exists() and not path.is_dir():
                raise click.UsageError(f"{path} is a file; a folder for the DICOM objects is expected")
        elif path.is_dir():
            raise click.UsageError(f"{path} is a folder; a file is expected")
        if not path.parent.is_dir():
            raise click.UsageError(f"the folder of {path} does not exist")
        if path.resolve() in taken:
            raise click.UsageError(f"{path} would replace the scan, the truth or another result")
        taken.append(path.resolve())


def write_files(
    options: SegmentOptions,
    files: OutputFiles,
    scan: Scan,
    segmentation: Segmentation,
    report: dict[str, Any],
    truth: NDArray[np.uint8] | None,
) -> None:
    """Write each result whole or not at all; what may fail in between is made before."""
    from covidseg_runtime import write_label_map, write_probability_map
    from covidseg_runtime.preview import render_preview
    from covidseg_runtime.volume_files import write_bytes_atomic, write_json

    picture = None
    if files.preview is not None:
        infection = None if truth is None else (truth == 3).astype(truth.dtype)
        picture = render_preview(scan.volume, segmentation.labels, infection)
    objects = () if files.dicom is None else _make_objects(scan, segmentation, report, options)
    if files.probability is not None and segmentation.infection_probability is not None:
        write_probability_map(files.probability, segmentation.infection_probability, scan.volume)
    if files.labels is not None:
        write_label_map(files.labels, segmentation.labels, scan.volume)
    if files.dicom is not None:
        _write_objects(files.dicom, objects)
    write_json(files.report, report)
    if files.preview is not None and picture is not None:
        write_bytes_atomic(files.preview, picture)


def _make_objects(
    scan: Scan, segmentation: Segmentation, report: dict[str, Any], options: SegmentOptions
) -> tuple[ResultObject, ...]:
    with needs_extra("dicom", "Writing DICOM"):
        from covidseg_runtime.dicom.results import WantedObjects, make_results
    if scan.source is None:  # refused before any work, see scan_input
        raise click.UsageError("--output-type dicom needs a DICOM series")
    wanted = WantedObjects(options.objects, options.lungs)
    return make_results(scan.volume, segmentation, report, scan.source, wanted)


def _write_objects(folder: Path, objects: tuple[ResultObject, ...]) -> None:
    """The objects of this result, and none of an earlier one: a scan without infection has no segmentation."""
    from covidseg_runtime.dicom.results import FILE_NAMES, write_results

    folder.mkdir(exist_ok=True)
    written = {path.name for path in write_results(folder, objects)}
    for name in set(FILE_NAMES.values()) - written:
        (folder / name).unlink(missing_ok=True)


def stem(path: Path) -> str:
    """The name of a scan or a label map without its ending, of a folder its name."""
    for ending in (*NIFTI_ENDINGS, *_OTHER_ENDINGS):
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.resolve().name if path.is_dir() else path.stem
