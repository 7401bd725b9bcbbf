"""What `covidseg segment` reads: NIfTI, a DICOM series, or what SimpleITK knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from covidseg.cli.exit_codes import needs_extra
from covidseg.cli.segment_options import SegmentOptions
from covidseg_runtime.scan_kind import ScanKind, scan_kind

if TYPE_CHECKING:
    from covidseg_runtime import Volume
    from covidseg_runtime.dicom.source_series import SourceSeries
    from covidseg_runtime.spooling import Spool


class ReadOptions(Protocol):
    """What may be said about a scan for it to be read; see `SegmentOptions`."""

    @property
    def series(self) -> str | None:
        """Of DICOM: the series."""

    @property
    def shear_tilt(self) -> bool:
        """Of DICOM: whether a gantry tilt is undone."""

    @property
    def window(self) -> tuple[float, float] | None:
        """Of NIfTI: the window whose grey levels it holds."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan as it was read.

    Attributes:
        volume: Its voxels.
        source: The series it came from; None where it was no DICOM.
    """

    volume: Volume
    source: SourceSeries | None = None


def judge_input(scan: Path, options: SegmentOptions) -> ScanKind:
    """What the path holds, before any work is done.

    Raises:
        click.UsageError: if options do not fit it.
    """
    kind = scan_kind(scan)
    if kind != "dicom":
        if "dicom" in options.output_type:
            raise click.UsageError(f"{scan} is no DICOM series, which --output-type dicom needs")
        if options.series is not None or options.shear_tilt:
            raise click.UsageError(f"{scan} is no DICOM series; --series and --shear-tilt are for one")
    elif options.window is not None:
        raise click.UsageError("--window is for files of grey levels; a DICOM series holds its own rescaling to HU")
    return kind


def read_scan(scan: Path, kind: ScanKind, options: ReadOptions, spool: Spool) -> Scan:
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
