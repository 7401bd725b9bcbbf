"""One scan of a folder: its results written beside those of others, and what became of it as a line of the manifest.

Whoever segmented it, a folder run of one process or a worker of a cluster, the scan is settled here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from covidseg_runtime.bundle import BUNDLE_FILE, ModelBundle, sha256_of
from covidseg_runtime.errors import CovidsegError, OutputError, VolumeError
from covidseg_runtime.folder_manifest import ScanRecord
from covidseg_runtime.folder_scans import FolderScan
from covidseg_runtime.many_scans import FailedScan, ManyResult, SegmentedScan, attempt
from covidseg_runtime.report import build_report, describe_scan, plain_json
from covidseg_runtime.segmenter import Segmentation, Segmenter
from covidseg_runtime.volume_files import write_json, write_label_map

# What the name of one result can be guilty of; any other failure to write would meet every scan.
_OF_ONE_NAME = frozenset(
    {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, None}
)


@dataclass(frozen=True)
class ScanState:
    """By what a scan is known again without reading it."""

    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> ScanState | None:
        """The state of a file; None if it is gone."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(status.st_size, status.st_mtime_ns)


def describe_settings(segmenter: Segmenter) -> dict[str, Any]:
    """What the results of a segmenter depend on, as JSON."""
    engine = segmenter.engine
    return {
        "model": f"{segmenter.bundle.name} {segmenter.bundle.version}",
        "model_sha256": model_sha256(segmenter.bundle),
        "engine": engine.name,
        "provider": getattr(engine, "provider", None),  # ONNX Runtime's: whether the CPU or a GPU computes
        "precision": engine.precision,
        **segmenter.settings.describe(),
    }


def model_sha256(bundle: ModelBundle) -> str:
    """By what a model is known: the sha256 of its description, which holds that of every other file."""
    return sha256_of(bundle.folder / BUNDLE_FILE)


def failed_record(
    scan: FolderScan, state: ScanState | None, settings: Mapping[str, Any], error: CovidsegError
) -> ScanRecord:
    """The line of a scan that has no result.

    Args:
        scan: The scan.
        state: As it was before it was read; None if it was not there.
        settings: What `describe_settings` gave.
        error: Why it failed.
    """
    record = _record(scan, state, settings)
    return replace(record, status="failed", error=" ".join(str(error).split()), exit_code=error.exit_code)


class ResultWriter:
    """Writes what one segmenter finds in the scans of a folder.

    Attributes:
        settings: What `describe_settings` gave.
    """

    def __init__(self, segmenter: Segmenter, source: Path) -> None:
        """Write for a segmenter that is open.

        Args:
            segmenter: It finds what is written.
            source: The folder of scans.
        """
        self.settings = describe_settings(segmenter)
        self._segmenter = segmenter
        self._source = source

    def settle(self, scan: FolderScan, state: ScanState | None, result: ManyResult) -> ScanRecord:
        """Write one result; the line to record comes back, also where it could not be written.

        Args:
            scan: The scan.
            state: As it was before it was read.
            result: What was found.

        Raises:
            OutputError: if results cannot be written for a reason that is not one scan's.
            VolumeError: if the folder of scans is gone.
        """
        if isinstance(result, FailedScan):
            outcome: ScanRecord | CovidsegError = result.error
        else:
            outcome = attempt(partial(self._write, scan, state, result), scan.name)
        if isinstance(outcome, ScanRecord):
            return outcome
        if isinstance(outcome, OutputError) and _errno_of(outcome) not in _OF_ONE_NAME:
            raise outcome
        if not os.access(self._source, os.R_OK | os.X_OK):
            raise VolumeError(f"{self._source} cannot be read any more") from outcome
        return failed_record(scan, state, self.settings, outcome)

    def _write(self, scan: FolderScan, state: ScanState | None, result: SegmentedScan) -> ScanRecord:
        """Write the report, then the label map: a report that is recorded belongs to the label map beside it."""
        sha256 = _hash_of_unchanged(scan.source, state)
        name = scan.source.name.encode("utf-8", "replace").decode()  # a name that is not UTF-8 is none in JSON
        segmentation, segmenter = result.segmentation, self._segmenter
        report = build_report(segmentation, segmenter.bundle, segmenter.engine, describe_scan(name, result.volume))
        report["settings"] = segmenter.settings.describe()
        _make_folder(scan.report.parent)
        write_json(scan.report, report)
        try:
            write_label_map(scan.labels, segmentation.labels, result.volume)
        except OutputError:
            scan.report.unlink(missing_ok=True)
            raise
        record = _record(scan, state, self.settings)
        return replace(
            record,
            input={**record.input, "sha256": sha256},
            outputs={
                "labels": {"file": f"{scan.stem}.nii.gz", "sha256": sha256_of(scan.labels)},
                "report": {"file": f"{scan.stem}.json", "sha256": sha256_of(scan.report)},
            },
            measures=_main_measures(segmentation),
            warnings=segmentation.warnings,
            seconds=round(sum(segmentation.timings_s.values()), 3),
        )


def _record(scan: FolderScan, state: ScanState | None, settings: Mapping[str, Any]) -> ScanRecord:
    return ScanRecord(
        scan=scan.name,
        status="ok",
        input={} if state is None else asdict(state),
        settings=settings,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}; give another place.") from error


def _hash_of_unchanged(path: Path, before: ScanState | None) -> str:
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise VolumeError(f"{path.name} cannot be read any more: {error.strerror}.") from error
    if ScanState.of(path) != before:
        raise VolumeError(f"{path.name} was changed while it was segmented; the same command does it again.")
    return sha256


def _errno_of(error: OutputError) -> int | None:
    return error.__cause__.errno if isinstance(error.__cause__, OSError) else None


def _main_measures(segmentation: Segmentation) -> dict[str, Any]:
    measures = segmentation.measures
    whole = {
        "lung_volume_ml": measures.lung_volume_ml.whole,
        "infection_volume_ml": measures.infection_volume_ml.whole,
        "infection_percent": measures.infection_percent.whole,
    }
    return {name: plain_json(value) for name, value in whole.items()}
