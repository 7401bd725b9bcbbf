"""Scoring a network on whole cases, with the runtime's own tiling and metrics."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.intensity import clip_and_scale_hounsfield
from covidseg_runtime.metrics import dice
from covidseg_runtime.sliding_window import predict_tiled
from covidseg_runtime.tiling import TilePlan
from covidseg_train.config import ExperimentConfig
from covidseg_train.preprocess import LESION_LABEL, PreparedCase


def predict_classes(engine: Engine, case: PreparedCase, config: ExperimentConfig) -> NDArray[np.uint8]:
    """Classes (Z, Y, X) of a prepared case on the model's grid."""
    classes = np.zeros(case.hu.shape, np.uint8)
    plan = TilePlan(tile_shape=config.tiles.shape, step=config.tiles.step)
    slabs = predict_tiled(engine, case.hu, plan, lambda hu: clip_and_scale_hounsfield(hu, config.grid.scaling))
    for slab in slabs:
        classes[slab.start : slab.start + slab.logits.shape[1]] = slab.logits.argmax(axis=0)
    return classes


def validate(engine: Engine, cases: Sequence[PreparedCase], config: ExperimentConfig) -> dict[str, float]:
    """DSC of the lesion, the last class, for each case, by name."""
    lesion_class = config.network.classes - 1
    return {
        case.name: dice(predict_classes(engine, case, config) == lesion_class, case.labels == LESION_LABEL)
        for case in cases
    }
