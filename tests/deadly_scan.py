"""Scans that kill or fault whoever segments them: of a process of its own, as a worker of a cluster is."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covidseg_runtime.segmenter import Segmentation, Segmenter
from covidseg_runtime.volume import Volume
from covidseg_runtime.wanted_segmenter import WantedSegmenter

DEADLY_HU = 1234
FAULTY_HU = 1235


class WatchfulSegmenter(Segmenter):
    """Dies of a scan whose highest value is `DEADLY_HU`, so many times; raises at `FAULTY_HU`."""

    deaths: Path
    most: int

    def segment(self, scan: Volume, *arguments: Any, **options: Any) -> Segmentation:
        """Die, or segment."""
        highest = scan.voxels.max()
        if highest == FAULTY_HU:
            raise KeyError("a fault of ours")
        if highest == DEADLY_HU and len(list(self.deaths.iterdir())) < self.most:
            (self.deaths / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().segment(scan, *arguments, **options)


@dataclass(frozen=True)
class DeadlyWanted(WantedSegmenter):
    """Opens a `WatchfulSegmenter`.

    Attributes:
        deaths: A folder that gets a file for each death.
        most: How many die.
    """

    deaths: Path = Path()
    most: int = 0

    def open(self) -> WatchfulSegmenter:
        """Load the model."""
        opened = super().open()
        segmenter = WatchfulSegmenter(opened.bundle, opened.engine, opened.settings)
        segmenter.deaths, segmenter.most = self.deaths, self.most
        return segmenter
