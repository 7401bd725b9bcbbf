"""Scoring a network on whole cases, with the runtime's own tiling, resampling and metrics."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.intensity import clip_and_scale_hounsfield
from covidseg_runtime.lung_box import find_lung_box
from covidseg_runtime.metrics import CaseMeasures, dice, measure_case
from covidseg_runtime.resampling import GridPair, to_source_labels
from covidseg_runtime.sliding_window import LogitSlab, predict_tiled
from covidseg_runtime.volume import MODEL_ORIENTATION, Volume, to_orientation
from covidseg_train.checkpoint import load_network
from covidseg_train.config import ExperimentConfig
from covidseg_train.datasets.dataset import CaseFiles, Dataset
from covidseg_train.device import choose_device, choose_precision
from covidseg_train.preprocess import LESION_LABEL, PreparedCase, prepare_case
from covidseg_train.torch_engine import TorchEngine

TOLERANCE_MM = 3.0  # the benchmark's for infection
CERTAIN_LOGIT = 10.0


def predict_slabs(engine: Engine, case: PreparedCase, config: ExperimentConfig) -> Iterator[LogitSlab]:
    """Logits of a prepared case on the model's grid, slab by slab.

    As in the runtime, only the box of the lungs is predicted; outside it the background is certain.
    """
    plan = config.tiles.plan()
    box = find_lung_box(case.hu, case.spacing_mm)
    hu, (_, rows, columns) = case.hu[box.slices], box.slices
    yield _background_slab(case, config, 0, box.start[0])
    for slab in predict_tiled(engine, hu, plan, lambda tile: clip_and_scale_hounsfield(tile, config.grid.scaling)):
        start = box.start[0] + slab.start
        whole = _background_slab(case, config, start, start + slab.logits.shape[1])
        whole.logits[:, :, rows, columns] = slab.logits
        yield whole
    yield _background_slab(case, config, box.stop[0], len(case.hu))


def _background_slab(case: PreparedCase, config: ExperimentConfig, start: int, stop: int) -> LogitSlab:
    logits = np.zeros((config.network.classes, stop - start, *case.hu.shape[1:]), np.float32)
    logits[0] = 1.0 if config.tiles.average == "probabilities" else CERTAIN_LOGIT
    return LogitSlab(start, logits)


def predict_classes(engine: Engine, case: PreparedCase, config: ExperimentConfig) -> NDArray[np.uint8]:
    """Classes (Z, Y, X) of a prepared case on the model's grid."""
    classes = np.zeros(case.hu.shape, np.uint8)
    for slab in predict_slabs(engine, case, config):
        classes[slab.start : slab.start + slab.logits.shape[1]] = slab.logits.argmax(axis=0)
    return classes


def validate(engine: Engine, cases: Sequence[PreparedCase], config: ExperimentConfig) -> dict[str, float]:
    """DSC of the lesion, the last class, for each case, by name; on the model's grid, for speed."""
    lesion_class = config.network.classes - 1
    return {
        case.name: dice(predict_classes(engine, case, config) == lesion_class, case.labels == LESION_LABEL)
        for case in cases
    }


def measure_checkpoint(
    checkpoint: Path, dataset: Dataset, files: Sequence[CaseFiles], *, device: str = "auto"
) -> dict[str, CaseMeasures]:
    """Every measure of the lesion on the scans' own grids, by case.

    Args:
        checkpoint: Its averaged weights are measured, without post-processing.
        dataset: The data set of the cases.
        files: The cases.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.
    """
    network, loaded = load_network(checkpoint)
    config, chosen = loaded.config, choose_device(device)
    precision = choose_precision(config.run.precision, chosen)
    engine = TorchEngine(network, device=chosen, precision=precision)
    measures = {}
    for one in files:
        case = prepare_case(dataset, one, config.grid.spacing_mm, Path(config.data.cache))
        lesion = read_lesion_once(dataset, one)
        predicted = predict_lesion(engine, case, lesion, config)
        measures[one.name] = measure_case(predicted, lesion.voxels > 0, lesion.spacing_mm, TOLERANCE_MM)
    return measures


def predict_lesion(engine: Engine, case: PreparedCase, source: Volume, config: ExperimentConfig) -> NDArray[np.bool_]:
    """The lesion, the last class, on the grid of ``source``, (Z, Y, X) in orientation SPL."""
    grids = GridPair.for_spacing(source.shape, source.spacing_mm, config.grid.spacing_mm)
    mask = np.zeros(source.shape, np.bool_)
    for z, classes in to_source_labels(predict_slabs(engine, case, config), grids):
        mask[z] = classes == config.network.classes - 1
    return mask


@lru_cache(maxsize=64)
def read_lesion_once(dataset: Dataset, files: CaseFiles) -> Volume:
    """The lesion mask of a case in orientation SPL; a study asks for the same cases again and again."""
    return to_orientation(dataset.read(files).lesion, MODEL_ORIENTATION)
