"""A folder of scans: every one segmented, its results beside each other in another folder, and a manifest.

The model is loaded once; the next scan is read and the last one written while the network works. Killed at any
moment, a run leaves whole files under final names only, and the next run goes on.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from covidseg_runtime.bundle import BUNDLE_FILE, sha256_of
from covidseg_runtime.errors import CovidsegError, OutputError, SettingsError, VolumeError
from covidseg_runtime.folder_manifest import DoneScan, Manifest, ScanRecord, open_manifest
from covidseg_runtime.folder_scans import FolderJob, FolderScan, find_scans, remove_temporaries
from covidseg_runtime.many_scans import FailedScan, ManyResult, SegmentedScan, attempt, segment_many
from covidseg_runtime.report import build_report, describe_scan, plain_json
from covidseg_runtime.segmenter import Segmentation, Segmenter
from covidseg_runtime.volume_files import write_json, write_label_map

# What the name of one result can be guilty of; any other failure to write would meet every scan.
_OF_ONE_NAME = frozenset(
    {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, None}
)


@contextmanager
def open_folder_run(job: FolderJob, segmenter: Segmenter) -> Iterator[FolderRun]:
    """Find the scans, make the folder of results, and clean up what a killed run left there.

    Raises:
        VolumeError: if there is no scan.
        OutputError: if the folder of results cannot be written to.
        SettingsError: if another process does the same part.
    """
    scans = find_scans(job)
    with open_manifest(job.output, job.part.manifest_name) as manifest:
        remove_temporaries(scans)
        yield FolderRun(job, segmenter, scans, manifest)


class FolderRun:
    """One part of a folder on its way; get one by `open_folder_run`.

    Attributes:
        scans: All scans of the part.
        left: Those to do: all but the ones whose input, model and settings are those of results that lie there.
        settings: What results depend on: model, engine, precision, quality and smallest lesion.
        manifest_path: Where they are recorded.
    """

    def __init__(self, job: FolderJob, segmenter: Segmenter, scans: tuple[FolderScan, ...], manifest: Manifest) -> None:
        """Use scans that were found and a manifest that is open."""
        self.scans = scans
        self.settings = describe_settings(segmenter)
        self.manifest_path = manifest.path
        self.left = tuple(scan for scan in scans if job.overwrite or not self._is_done(scan, manifest))
        self._job = job
        self._segmenter = segmenter
        self._manifest = manifest
        self._states: dict[str, _State | None] = {}

    def segment(self, on_record: Callable[[ScanRecord], None], cancel: threading.Event | None = None) -> None:
        """Segment what is left, write the results and record them; a scan that fails does not stop the others.

        Args:
            on_record: Called when a scan is recorded, mostly in the thread that writes.
            cancel: Set it to drop the scan in work after its tile; the one before is still written.

        Raises:
            SegmentationCancelled: if `cancel` was set.
            OutputError: if results cannot be written for a reason that is not one scan's.
            VolumeError: if the folder of scans is gone.
        """
        for scan in self.left:
            if scan.twin is not None:
                clash = f"{scan.name}: its results would have the names of those of {scan.twin}; rename one of the two"
                self._record(scan, SettingsError(clash), on_record)
        scans = [scan for scan in self.left if scan.twin is None]
        written: Future[None] | None = None
        results = segment_many(self._segmenter, self._note_states(scans), cancel=cancel)
        with ThreadPoolExecutor(1, "covidseg-writer") as writer, closing(results):
            for scan, result in zip(scans, results, strict=True):
                if written is not None:
                    written.result()  # one at a time: what waits to be written takes memory
                written = writer.submit(self._settle, scan, result, on_record)
                del result
            if written is not None:
                written.result()

    def _is_done(self, scan: FolderScan, manifest: Manifest) -> bool:
        return any(
            entry.settings == self.settings and _stands(scan, entry) and _is_input_of(scan, entry)
            for entry in manifest.done.get(scan.name, ())
        )

    def _note_states(self, scans: Iterable[FolderScan]) -> Iterator[Path]:
        for scan in scans:
            self._states[scan.name] = _State.of(scan.source)
            yield scan.source

    def _settle(self, scan: FolderScan, result: ManyResult, on_record: Callable[[ScanRecord], None]) -> None:
        """Write and record one result."""
        if isinstance(result, FailedScan):
            outcome: _Results | CovidsegError = result.error
        else:
            outcome = attempt(partial(self._write, scan, result), scan.name)
        if isinstance(outcome, OutputError) and _errno_of(outcome) not in _OF_ONE_NAME:
            raise outcome
        if isinstance(outcome, CovidsegError) and not os.access(self._job.source, os.R_OK | os.X_OK):
            raise VolumeError(f"{self._job.source} cannot be read any more") from outcome
        self._record(scan, outcome, on_record)

    def _write(self, scan: FolderScan, result: SegmentedScan) -> _Results:
        """Write the report, then the label map: a report that is recorded belongs to the label map beside it."""
        sha256 = _hash_of_unchanged(scan.source, self._states.get(scan.name))
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
        outputs = {
            "labels": {"file": f"{scan.stem}.nii.gz", "sha256": sha256_of(scan.labels)},
            "report": {"file": f"{scan.stem}.json", "sha256": sha256_of(scan.report)},
        }
        return _Results(sha256, outputs, segmentation)

    def _record(
        self, scan: FolderScan, outcome: _Results | CovidsegError, on_record: Callable[[ScanRecord], None]
    ) -> None:
        state = self._states.pop(scan.name, None)
        record = ScanRecord(
            scan=scan.name,
            status="ok",
            input={} if state is None else asdict(state),
            settings=self.settings,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if isinstance(outcome, CovidsegError):
            record = replace(record, status="failed", error=" ".join(str(outcome).split()), exit_code=outcome.exit_code)
        else:
            record = replace(
                record,
                input={**record.input, "sha256": outcome.input_sha256},
                outputs=outcome.files,
                measures=_main_measures(outcome.segmentation),
                warnings=outcome.segmentation.warnings,
                seconds=round(sum(outcome.segmentation.timings_s.values()), 3),
            )
        self._manifest.append(record)
        on_record(record)


def describe_settings(segmenter: Segmenter) -> dict[str, Any]:
    """What the results of a segmenter depend on, as JSON."""
    bundle, engine, settings = segmenter.bundle, segmenter.engine, segmenter.settings
    return {
        "model": f"{bundle.name} {bundle.version}",
        "model_sha256": sha256_of(bundle.folder / BUNDLE_FILE),  # it holds the sha256 of every other file
        "engine": engine.name,
        "provider": getattr(engine, "provider", None),  # ONNX Runtime's: whether the CPU or a GPU computes
        "precision": engine.precision,
        **settings.describe(),
    }


@dataclass(frozen=True)
class _State:
    """By what a scan is known again without reading it."""

    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> _State | None:
        """The state of a file; None if it is gone."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, eq=False)
class _Results:
    """What was written for a scan."""

    input_sha256: str
    files: Mapping[str, Mapping[str, str]]
    segmentation: Segmentation


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}; give another place.") from error


def _stands(scan: FolderScan, entry: DoneScan) -> bool:
    """Whether the results lie where they were written.

    The label map is not compared: a person may have corrected it, and that work is kept.
    """
    try:
        return scan.labels.is_file() and sha256_of(scan.report) == entry.report_sha256
    except OSError:
        return False


def _is_input_of(scan: FolderScan, entry: DoneScan) -> bool:
    """Whether the scan is the one that was segmented; its content decides where it was copied since."""
    state = _State.of(scan.source)
    if state is None or state.size_bytes != entry.size_bytes:
        return False
    try:
        return state.mtime_ns == entry.mtime_ns or sha256_of(scan.source) == entry.sha256
    except OSError:
        return False


def _hash_of_unchanged(path: Path, before: _State | None) -> str:
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise VolumeError(f"{path.name} cannot be read any more: {error.strerror}.") from error
    if _State.of(path) != before:
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
