"""Cutting training patches out of prepared cases, with the lesion over-sampled; the cases live on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from covidseg_runtime.intensity import HounsfieldScaling
from covidseg_train.augmentation import augment, context_shape, draw_changes
from covidseg_train.config import ExperimentConfig, PatchConfig
from covidseg_train.distributed import Ranks
from covidseg_train.losses import IGNORED
from covidseg_train.opaque_masses import put_opaque_mass
from covidseg_train.preprocess import LESION_LABEL, PreparedCase

AIR_HU = -1024
# Class of each label 0 to 3, by target.
CLASS_OF_LABEL = {"lung_and_lesion": (0, 1, 1, 2), "lesion": (0, 0, 0, 1)}


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Prepared cases of one data set, and how they are drawn.

    Attributes:
        cases: The cases.
        task: Whose heads they supervise.
        weight: How often the set is drawn, relative to the others of its task.
    """

    cases: Sequence[PreparedCase]
    task: str
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step learns from.

    Attributes:
        images: (N, 1, Z, Y, X) float32, scaled, on the device.
        labels: (N, 1, Z, Y, X) uint8 classes, on the device; 255 where nothing is known, 254 in an opaque mass.
        task: Whose heads are supervised.
    """

    images: Tensor
    labels: Tensor
    task: str


@dataclass(frozen=True, eq=False)
class _ResidentCase:
    """One case on the device, with the voxels on which a patch may be centred as flat indices."""

    hu: Tensor
    classes: Tensor
    fill_class: int
    lesion: NDArray[np.int32]
    lung: NDArray[np.int32]


class PatchSampler:
    """Batches as a pure function of the step, so that a resumed training sees what it would have seen."""

    def __init__(
        self, sets: Sequence[TrainingSet], config: ExperimentConfig, device: torch.device, ranks: Ranks | None = None
    ) -> None:
        """Copy every case to the device and index its voxels once."""
        self._config = config
        self._device = device
        self._ranks = ranks or Ranks()
        self._context = context_shape(config.patches, config.augmentation)
        class_of_label = np.array(CLASS_OF_LABEL[config.data.target], np.uint8)
        self._tasks: dict[str, list[tuple[float, list[_ResidentCase]]]] = {}
        for one in sets:
            cases = [_make_resident(case, class_of_label, device) for case in one.cases]
            self._tasks.setdefault(one.task, []).append((one.weight, cases))

    def batch(self, step: int) -> Batch:
        """Draw this rank's share of the batch of one step; every rank works on the same task."""
        seed, size = self._config.run.seed, self._config.patches.batch_size // self._ranks.world_size
        names = list(self._tasks)
        task = names[int(np.random.default_rng([seed, step]).integers(len(names)))]
        first = self._ranks.rank * size
        rngs = [np.random.default_rng([seed, step, index]) for index in range(first, first + size)]
        cuts = [self._cut(task, rng) for rng in rngs]
        changes = [draw_changes(rng, self._config.patches, self._config.augmentation) for rng in rngs]
        spacing = self._config.grid.spacing_mm
        cuts = [
            put_opaque_mass(*cut, change.mass, spacing) if change.mass is not None else cut
            for cut, change in zip(cuts, changes, strict=True)
        ]
        hu, classes = (torch.stack(parts)[:, None] for parts in zip(*cuts, strict=True))
        images = scale_hounsfield(hu, self._config.grid.scaling)
        return Batch(*augment(images, classes, changes, self._config.patches.shape), task)

    def _cut(self, task: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        sets = self._tasks[task]
        weights = np.array([weight for weight, _ in sets])
        cases = sets[int(rng.choice(len(sets), p=weights / weights.sum()))][1]
        case = cases[int(rng.integers(len(cases)))]
        centre = _draw_centre(case, self._config.patches, rng)
        hu = cut_centred(case.hu, centre, self._context, fill=AIR_HU)
        return hu, cut_centred(case.classes, centre, self._context, fill=case.fill_class)


def _make_resident(case: PreparedCase, class_of_label: NDArray[np.uint8], device: torch.device) -> _ResidentCase:
    flat = case.labels.ravel()
    return _ResidentCase(
        hu=torch.from_numpy(case.hu).to(device),
        classes=torch.from_numpy(class_of_label[case.labels]).to(device),
        # Around a whole chest lies air; what lies around a crop, nobody knows.
        fill_class=0 if case.is_whole_chest else IGNORED,
        lesion=np.flatnonzero(flat == LESION_LABEL).astype(np.int32),
        lung=np.flatnonzero(flat > 0).astype(np.int32),
    )


def _draw_centre(case: _ResidentCase, patches: PatchConfig, rng: np.random.Generator) -> tuple[int, int, int]:
    lot = rng.random()
    candidates = case.lesion
    if lot >= patches.infection_fraction or not candidates.size:
        candidates = case.lung
    if lot >= patches.infection_fraction + patches.lung_fraction or not candidates.size:
        flat = int(rng.integers(case.hu.numel()))
    else:
        flat = int(candidates[rng.integers(candidates.size)])
    z, y, x = np.unravel_index(flat, case.hu.shape)
    return int(z), int(y), int(x)


def cut_centred(array: Tensor, centre: tuple[int, int, int], shape: tuple[int, int, int], fill: int) -> Tensor:
    """Cut ``shape`` voxels around ``centre``; what lies outside the array (Z, Y, X) is ``fill``."""
    starts = [c - n // 2 for c, n in zip(centre, shape, strict=True)]
    inside = tuple(
        slice(max(0, s), min(length, s + n)) for s, n, length in zip(starts, shape, array.shape, strict=True)
    )
    target = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, starts, strict=True))
    patch = torch.full(shape, fill, dtype=array.dtype, device=array.device)
    patch[target] = array[inside]
    return patch


def scale_hounsfield(hu: Tensor, scaling: HounsfieldScaling) -> Tensor:
    """The runtime's ``clip_and_scale_hounsfield`` on tensors: int16 HU to float32."""
    clipped = hu.float().clamp(scaling.lower_hu, scaling.upper_hu)
    return (clipped - scaling.mean_hu) * (1.0 / scaling.sd_hu)
