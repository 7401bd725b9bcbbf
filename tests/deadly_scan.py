"""Scans that kill who segments them, and segmenters that are none: for workers of a cluster, processes of their own."""

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


@dataclass(frozen=True)
class OtherWanted(WantedSegmenter):
    """Opens another model, as a machine does that has another one under the same name."""

    other: str = ""

    def open(self) -> Segmenter:
        """Load the other model."""
        return WantedSegmenter(self.other, self.engine, threads=self.threads).open()


@dataclass(frozen=True)
class DeadWanted(WantedSegmenter):
    """Dies when the model is to be loaded."""

    def open(self) -> Segmenter:
        """Die."""
        os.kill(os.getpid(), signal.SIGKILL)
        return super().open()
