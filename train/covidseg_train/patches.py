"""Cutting training patches out of preprocessed cases, with the infection over-sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from covidseg_runtime.intensity import clip_and_scale_hounsfield
from covidseg_train.augmentation import build_augmentation, context_shape
from covidseg_train.config import ExperimentConfig
from covidseg_train.preprocess import PreparedCase

AIR_HU = -1024
# What the network tells apart. Left and right lung look alike in most patches, so they are one class here and the
# runtime parts them by their place in the chest.
CLASS_OF_LABEL = np.array([0, 1, 1, 2], np.uint8)

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class CentreVoxels:
    """Voxels of one case on which a patch may be centred, as flat indices."""

    infection: NDArray[np.int32]
    lung: NDArray[np.int32]


class PatchSampler:
    """Batches as a pure function of the step, so that a resumed training sees what it would have seen."""

    def __init__(self, cases: Sequence[PreparedCase], config: ExperimentConfig) -> None:
        """Index the voxels of every case once."""
        self._cases = cases
        self._config = config
        self._context = context_shape(config.patches, config.augmentation)
        self._augment = build_augmentation(config.patches, config.augmentation)
        self._centres = [_index_centres(case.labels) for case in cases]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Draw the batch of one step.

        Returns:
            Images (N, 1, Z, Y, X) float32 and classes (N, 1, Z, Y, X) uint8: background, lung, infection.
        """
        patches = [self._patch(step, index) for index in range(self._config.patches.batch_size)]
        images, labels = zip(*patches, strict=True)
        return torch.stack(images), torch.stack(labels)

    def _patch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self._config.run.seed, step, index])
        which = int(rng.integers(len(self._cases)))
        centre = self._draw_centre(which, rng)
        case = self._cases[which]
        hu = cut_centred(case.hu, centre, self._context, fill=AIR_HU)
        labels = CLASS_OF_LABEL[cut_centred(case.labels, centre, self._context, fill=0)]
        image = clip_and_scale_hounsfield(hu, self._config.grid.scaling)
        return self._augment(image, labels, int(rng.integers(2**31)))

    def _draw_centre(self, which: int, rng: np.random.Generator) -> tuple[int, int, int]:
        patches, shape = self._config.patches, self._cases[which].labels.shape
        lot = rng.random()
        candidates = self._centres[which].infection
        if lot >= patches.infection_fraction or not candidates.size:
            candidates = self._centres[which].lung
        if lot >= patches.infection_fraction + patches.lung_fraction or not candidates.size:
            flat = int(rng.integers(int(np.prod(shape))))
        else:
            flat = int(candidates[rng.integers(candidates.size)])
        z, y, x = np.unravel_index(flat, shape)
        return int(z), int(y), int(x)


def cut_centred(
    array: NDArray[Scalar], centre: tuple[int, int, int], shape: tuple[int, int, int], fill: int
) -> NDArray[Scalar]:
    """Cut ``shape`` voxels around ``centre``; what lies outside the array is ``fill``."""
    starts = [c - n // 2 for c, n in zip(centre, shape, strict=True)]
    inside = tuple(
        slice(max(0, s), min(length, s + n)) for s, n, length in zip(starts, shape, array.shape, strict=True)
    )
    target = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, starts, strict=True))
    patch = np.full(shape, fill, array.dtype)
    patch[target] = array[inside]
    return patch


def _index_centres(labels: NDArray[np.uint8]) -> CentreVoxels:
    flat = labels.ravel()
    return CentreVoxels(
        infection=np.flatnonzero(flat == 3).astype(np.int32), lung=np.flatnonzero(flat > 0).astype(np.int32)
    )
