"""A bundle on the scans of DATA, for `model_quality.py`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from model_quality_scans import Mask, use_in_training

from covidseg_runtime import Segmentation, Segmenter, VolumeError, read_label_map, read_volume
from covidseg_runtime.evaluation import align_truth
from covidseg_runtime.intensity import Window
from covidseg_runtime.preview import write_preview
from covidseg_runtime.volume import Volume
from covidseg_train.datasets.covid_19_ct_seg_rebuilt import find_cases


@dataclass
class Trial:
    """A bundle on the scans of DATA; each is segmented once.

    Attributes:
        segmenter: The bundle, opened.
        data: DATA.
        pictures: Folder for overlays; None draws none.
        cases: The only cases wanted; empty for all.
    """

    segmenter: Segmenter
    data: Path
    pictures: Path | None
    cases: tuple[str, ...]
    _done: dict[Path, Segmentation] = field(default_factory=dict)

    def wants(self, case: str) -> bool:
        """Whether a case was asked for."""
        return not self.cases or case in self.cases

    def segment(self, path: Path) -> Segmentation:
        """The labels of a file of DATA."""
        if path not in self._done:
            self._done[path] = segment_file(self.segmenter, path)
        return self._done[path]

    def use(self, case: str) -> str:
        """What the training did with the patient."""
        return use_in_training(self.segmenter.bundle.card.get("training", {}), case)

    def mark(self, scan: Volume, case: str, name: str) -> Mask:
        """A mask of lesions/ or lungs/ on the grid of a scan, (X, Y, Z)."""
        folder = "lungs" if name == "lungs" else "lesions"
        mask = read_label_map(self.data / folder / f"{case}_{name}.nii.gz")
        return align_truth(scan, mask, truth_kind="infection") > 0

    def picture(self, name: str, path: Path, truth: Mask | None) -> str | None:
        """Draw an overlay; the name of its file, or None where none is wanted."""
        if self.pictures is None:
            return None
        file = self.pictures / f"{name}.png"
        reference = None if truth is None else truth.astype(np.uint8)
        write_preview(file, read_volume(path), self.segment(path).labels, reference)
        return file.name


def segment_file(segmenter: Segmenter, path: Path, window: Window | None = None) -> Segmentation:
    """Segment a scan in HU, or in grey levels of a window, and say on stderr what is being worked on."""
    print(path.name, file=sys.stderr)
    return segmenter.segment(read_volume(path, spool=segmenter.settings.spool, window=window))


def held_out(trial: Trial) -> list[str]:
    """The COVID-19 cases whose patients were not learned from.

    Raises:
        VolumeError: If the bundle learned from a whole data set.
    """
    training = trial.segmenter.bundle.card.get("training", {})
    if "*" in training.get("train", ()):
        raise VolumeError("the bundle learned from all cases of its data set: none is held out")
    cases = [case.name for case in find_cases(trial.data / "covid")]
    return [case for case in cases if trial.use(case) != "learned from"]


def covid_files(trial: Trial, case: str) -> tuple[Path, Volume]:
    """The CT's file and the infection mask of a COVID-19 case."""
    folder = trial.data / "covid"
    return folder / f"{case}_ct.nii.gz", read_label_map(folder / f"{case}_infection.nii.gz")
