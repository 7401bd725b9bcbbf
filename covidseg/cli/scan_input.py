"""What `covidseg segment` reads: NIfTI, a DICOM series, or what SimpleITK knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from covidseg.cli.exit_codes import needs_extra
from covidseg.cli.segment_options import SegmentOptions
from covidseg_runtime.errors import VolumeError
from covidseg_runtime.scan_kind import ScanKind, has_nifti_ending, scan_kind

if TYPE_CHECKING:
    from covidseg_runtime import Volume
    from covidseg_runtime.dicom.source_series import SourceSeries
    from covidseg_runtime.spooling import Spool


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan as it was read.

    Attributes:
        volume: Its voxels.
        source: The series it came from; None where it was no DICOM.
    """

    volume: Volume
    source: SourceSeries | None = None


@dataclass(frozen=True)
class ReadingOptions:
    """How a scan is read.

    Attributes:
        series: Of DICOM: the series' UID; None for the one that the rule chooses.
        shear_tilt: Of DICOM: undo a gantry tilt.
        window: Of a file of grey levels: their window in HU.
    """

    series: str | None = None
    shear_tilt: bool = False
    window: tuple[float, float] | None = None


def judge_input(scan: Path, options: SegmentOptions) -> ScanKind:
    """What the path holds, before any work is done.

    Raises:
        click.UsageError: if options do not fit it.
        VolumeError: if it is no file of a kind that is read.
    """
    kind = scan_kind(scan)
    if kind == "nifti" and not has_nifti_ending(scan.name):
        raise VolumeError(
            f"{scan.name} is no scan that is read: give NIfTI (.nii, .nii.gz), DICOM (the folder of a series, a zip "
            "archive or a multi-frame file), NRRD or MetaImage."
        )
    if options.ray is not None and kind != "folder":
        raise click.UsageError(f"--ray is for a folder of scans; {scan} is one scan")
    if options.ray is None and (options.ray_actors is not None or options.cores_per_actor is not None):
        raise click.UsageError("--ray-actors and --cores-per-actor go with --ray")
    if kind != "dicom":
        if "dicom" in options.output_type:
            raise click.UsageError(f"{scan} is no DICOM series, which --output-type dicom needs")
        if options.series is not None or options.shear_tilt:
            raise click.UsageError(f"{scan} is no DICOM series; --series and --shear-tilt are for one")
    elif options.window is not None:
        raise click.UsageError("--window is for files of grey levels; a DICOM series holds its own rescaling to HU")
    return kind


def read_scan(scan: Path, kind: ScanKind, options: ReadingOptions, spool: Spool | None) -> Scan:
    """Read the scan.

    Raises:
        VolumeError: if it is unsuitable.
        CommandError: if an extra is not installed.
    """
    if kind == "dicom":
        with needs_extra("dicom", "Reading DICOM"):
            from covidseg_runtime.dicom.read_series import read_series
        return Scan(*read_series(scan, series_uid=options.series, spool=spool, shear_tilt=options.shear_tilt))
    if kind == "itk":
        with needs_extra("itk", f"Reading {scan.name}"):
            from covidseg_runtime.itk_files import read_itk
        return Scan(read_itk(scan))
    from covidseg_runtime import read_volume

    return Scan(read_volume(scan, spool=spool, window=options.window))
