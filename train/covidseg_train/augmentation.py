"""Random changes of a training patch. Everything follows from one seed a patch."""

import math
from collections.abc import Callable

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
)
from monai.utils import convert_to_tensor
from numpy.typing import NDArray
from torch import Tensor

from covidseg_train.config import AugmentationConfig, PatchConfig

Augmentation = Callable[[NDArray[np.float32], NDArray[np.uint8], int], tuple[Tensor, Tensor]]


def context_shape(patches: PatchConfig, augmentation: AugmentationConfig) -> tuple[int, int, int]:
    """Voxels (z, y, x) to cut so that a rotated or shrunken patch rarely meets the border."""
    grow = 1.0 + (augmentation.scale_range if augmentation.affine_probability > 0 else 0.0)
    z, y, x = (math.ceil(n * grow / 2) * 2 for n in patches.shape)
    return z, y, x


def build_augmentation(patches: PatchConfig, augmentation: AugmentationConfig) -> Augmentation:
    """Return a function ``(image, labels, seed) -> (image, labels)``.

    The function takes a scaled image and labels of ``context_shape`` (z, y, x) and gives tensors of shape
    (1, *patches.shape), float32 and uint8. The same seed gives the same patch.
    """
    chain = _monai_chain(patches, augmentation)

    def augment(image: NDArray[np.float32], labels: NDArray[np.uint8], seed: int) -> tuple[Tensor, Tensor]:
        chain.set_random_state(seed=seed)
        patch = chain({"image": torch.from_numpy(image)[None], "labels": torch.from_numpy(labels)[None].float()})
        out_image = convert_to_tensor(patch["image"], track_meta=False)
        out_labels = convert_to_tensor(patch["labels"], track_meta=False).to(torch.uint8)
        if np.random.default_rng([seed, 1]).random() < augmentation.mirror_probability:
            out_image, out_labels = out_image.flip(-1), out_labels.flip(-1)
        return out_image, out_labels

    return augment


def _monai_chain(patches: PatchConfig, augmentation: AugmentationConfig) -> Compose:
    contrast = augmentation.contrast_probability
    rotation = math.radians(augmentation.rotation_degrees)
    return Compose(
        [
            RandAffined(
                keys=("image", "labels"),
                prob=augmentation.affine_probability,
                spatial_size=patches.shape,
                rotate_range=(rotation,) * 3,
                scale_range=(augmentation.scale_range,) * 3,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            RandGaussianNoised(keys="image", prob=augmentation.noise_probability, std=0.1),
            RandGaussianSmoothd(
                keys="image",
                prob=augmentation.blur_probability,
                sigma_x=(0.5, 1.0),
                sigma_y=(0.5, 1.0),
                sigma_z=(0.5, 1.0),
            ),
            RandScaleIntensityd(keys="image", prob=contrast, factors=0.25),
            RandSimulateLowResolutiond(
                keys="image", prob=augmentation.low_resolution_probability, zoom_range=(0.5, 1.0)
            ),
            RandAdjustContrastd(keys="image", prob=contrast, gamma=(0.7, 1.5)),
        ],
        map_items=False,
    )
