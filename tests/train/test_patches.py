import dataclasses

import numpy as np
import torch

from covidseg_train.config import AugmentationConfig, PatchConfig, config_from_dict
from covidseg_train.patches import PatchSampler, cut_centred
from covidseg_train.preprocess import PreparedCase

STILL = AugmentationConfig(
    mirror_probability=0.0,
    affine_probability=0.0,
    noise_probability=0.0,
    blur_probability=0.0,
    contrast_probability=0.0,
    low_resolution_probability=0.0,
)


def experiment(patches, augmentation):
    config = config_from_dict(
        {
            "name": "t",
            "data": {"dataset": "covid_19_ct_seg_rebuilt", "root": "x", "train": ["a"]},
            "network": {"widths": [4, 4], "strides": [[2, 2, 2]], "supervised_levels": 1},
        }
    )
    return dataclasses.replace(config, patches=patches, augmentation=augmentation)


def case_with_one_lesion():
    labels = np.zeros((40, 50, 60), np.uint8)
    labels[5:35, 5:45, 5:28] = 2
    labels[5:35, 5:45, 32:55] = 1
    labels[20, 20, 26] = 3  # near the gap, so that a patch around it holds both lungs
    hu = np.where(labels == 3, 0, np.where(labels > 0, -850, 40)).astype(np.int16)
    return PreparedCase("a", hu, labels, (1.5, 1.5, 1.5))


def test_an_infection_patch_is_centred_on_infection_and_lungs_are_one_class():
    config = experiment(PatchConfig((16, 16, 16), 2, 1.0, 0.0), STILL)
    images, labels = PatchSampler([case_with_one_lesion()], config).batch(0)
    assert images.shape == labels.shape == (2, 1, 16, 16, 16)
    assert (labels[:, 0, 8, 8, 8] == 2).all()
    assert set(labels.unique().tolist()) == {0, 1, 2}
    assert images[0, 0, 8, 8, 8] == (0 + 500) / 400


def test_a_batch_follows_from_seed_and_step_alone():
    config = experiment(PatchConfig((16, 16, 16), 2), AugmentationConfig(affine_probability=1.0))
    first, second = (PatchSampler([case_with_one_lesion()], config) for _ in range(2))
    first.batch(0)
    for ours, theirs in zip(first.batch(5), second.batch(5), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(first.batch(5)[0], first.batch(6)[0])


def test_augmented_labels_stay_classes():
    config = experiment(PatchConfig((16, 16, 16), 4), AugmentationConfig(affine_probability=1.0))
    sampler = PatchSampler([case_with_one_lesion()], config)
    for step in range(5):
        images, labels = sampler.batch(step)
        assert images.isfinite().all()
        assert labels.dtype == torch.uint8
        assert labels.max() <= 2


def test_cut_fills_what_lies_outside():
    cut = cut_centred(np.ones((4, 4, 4), np.int16), (0, 3, 2), (4, 4, 4), fill=-9)
    assert (cut[:2] == -9).all()
    assert (cut[:, 3:] == -9).all()
    assert (cut[2:, :3] == 1).all()
