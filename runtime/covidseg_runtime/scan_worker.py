"""One of several workers on a folder: segments scans and writes their results; another records them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from covidseg_runtime.engines.engine import describe_engine
from covidseg_runtime.errors import EngineError
from covidseg_runtime.folder_manifest import ScanRecord
from covidseg_runtime.folder_scans import FolderScan
from covidseg_runtime.many_scans import segment_many
from covidseg_runtime.report import describe_choice
from covidseg_runtime.scan_results import ResultWriter, ScanState
from covidseg_runtime.wanted_segmenter import WantedSegmenter

# Their versions decide about the last bits of a result.
_COMPUTING = ("numpy", "scipy", "openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt")


@dataclass(frozen=True)
class SharedFolders:
    """What a worker has to see as the one who sends it does.

    Attributes:
        source: The folder of scans.
        output: The folder of results.
        mark: A file in the folder of results, made for this run.
    """

    source: Path
    output: Path
    mark: Path


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker computes with; two of one run have the same.

    Attributes:
        choice: Model and engine, in a line.
        settings: What results depend on, as in the manifest.
        threads: Of the CPU.
        packages: Name -> version of what computes; None where it is not installed.
    """

    choice: str
    settings: Mapping[str, Any]
    threads: int | str | None
    packages: Mapping[str, str | None]


class ScanWorker:
    """Segments scans of a folder; several threads may ask it at the same time.

    Attributes:
        facts: What it computes with.
    """

    def __init__(self, wanted: WantedSegmenter, folders: SharedFolders) -> None:
        """Load the model.

        Raises:
            EngineError: if the folders are not those of the sender, or no engine can run the model as asked for.
            BundleError: if the bundle is missing or altered.
        """
        _require_shared(folders)
        self._segmenter = wanted.open()
        self._writer = ResultWriter(self._segmenter, folders.source)
        self._cancel = threading.Event()
        self.facts = WorkerFacts(
            choice=describe_choice(self._segmenter),
            settings=self._writer.settings,
            threads=describe_engine(self._segmenter.engine)["threads"],
            packages={name: _version(name) for name in _COMPUTING},
        )

    def segment(self, scan: FolderScan) -> ScanRecord:
        """Segment a scan and write its results; the line to record comes back.

        Raises:
            SegmentationCancelled: after `cancel`.
            OutputError: if results cannot be written for a reason that is not one scan's.
            VolumeError: if the folder of scans is gone.
        """
        state = ScanState.of(scan.source)
        with closing(segment_many(self._segmenter, (scan.source,), prefetch=0, cancel=self._cancel)) as results:
            (result,) = results
        return self._writer.settle(scan, state, result)

    def cancel(self) -> None:
        """End what is being segmented after its tile; what is being written is written."""
        self._cancel.set()


def _require_shared(folders: SharedFolders) -> None:
    for folder, seen in ((folders.source, folders.source.is_dir()), (folders.output, folders.mark.is_file())):
        if not seen:
            raise EngineError(
                f"the folder {folder} is not there as the command sees it; scans and results have to lie on a file "
                "system that all machines share, under the same path"
            )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
