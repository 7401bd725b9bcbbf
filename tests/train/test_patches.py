import dataclasses

import numpy as np
import torch

from covidseg_runtime.intensity import clip_and_scale_hounsfield
from covidseg_train.config import AugmentationConfig, PatchConfig, config_from_dict
from covidseg_train.distributed import Ranks
from covidseg_train.losses import IGNORED, IN_LUNG
from covidseg_train.patches import PatchSampler, TrainingSet, cut_centred, scale_hounsfield
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
            "data": {"dataset": "covid-19-ct-seg-rebuilt", "root": "x", "train": ["a"]},
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


def sampler_of(config, ranks=None):
    return PatchSampler([TrainingSet([case_with_one_lesion()], "lesion")], config, torch.device("cpu"), ranks)


def test_an_infection_patch_is_centred_on_infection_and_lungs_are_one_class():
    config = experiment(PatchConfig((16, 16, 16), 2, 1.0, 0.0), STILL)
    batch = sampler_of(config).batch(0)
    images, labels = batch.images, batch.labels
    assert images.shape == labels.shape == (2, 1, 16, 16, 16)
    assert (labels[:, 0, 8, 8, 8] == 2).all()
    assert set(labels.unique().tolist()) == {0, 1, 2}
    assert images[0, 0, 8, 8, 8] == (0 + 500) / 400


def test_a_batch_follows_from_seed_and_step_alone():
    config = experiment(PatchConfig((16, 16, 16), 2), AugmentationConfig(affine_probability=1.0))
    first, second = (sampler_of(config) for _ in range(2))
    first.batch(0)
    assert torch.equal(first.batch(5).images, second.batch(5).images)
    assert torch.equal(first.batch(5).labels, second.batch(5).labels)
    assert not torch.equal(first.batch(5).images, first.batch(6).images)


def test_ranks_share_the_batch_of_one_process():
    config = experiment(PatchConfig((16, 16, 16), 4), AugmentationConfig(affine_probability=1.0))
    whole = sampler_of(config).batch(3)
    shares = [sampler_of(config, Ranks(rank, 2)).batch(3) for rank in range(2)]
    assert torch.equal(whole.images, torch.cat([share.images for share in shares]))
    assert torch.equal(whole.labels, torch.cat([share.labels for share in shares]))


def test_each_batch_is_of_one_task_and_every_task_comes():
    config = experiment(PatchConfig((16, 16, 16), 2), STILL)
    sets = [TrainingSet([case_with_one_lesion()], task) for task in ("nodule", "tumour")]
    sampler = PatchSampler(sets, config, torch.device("cpu"))
    assert {sampler.batch(step).task for step in range(20)} == {"nodule", "tumour"}


def test_nothing_is_known_beyond_the_border_of_a_crop():
    case = case_with_one_lesion()
    crop = dataclasses.replace(case, hu=case.hu[16:24, 16:24, 22:30], labels=case.labels[16:24, 16:24, 22:30])
    crop = dataclasses.replace(crop, is_whole_chest=False)
    config = experiment(PatchConfig((16, 16, 16), 1, 1.0, 0.0), STILL)
    labels = PatchSampler([TrainingSet([crop], "lesion")], config, torch.device("cpu")).batch(0).labels
    assert (labels != IGNORED).sum() == 8**3


def test_scaling_is_the_runtime_s_bit_for_bit():
    hu = np.arange(-1100, 1500, dtype=np.int16)
    scaling = experiment(PatchConfig(), STILL).grid.scaling
    assert np.array_equal(
        scale_hounsfield(torch.from_numpy(hu), scaling).numpy(), clip_and_scale_hounsfield(hu, scaling)
    )


def test_augmented_labels_stay_classes():
    config = experiment(PatchConfig((16, 16, 16), 4), AugmentationConfig(affine_probability=1.0))
    sampler = sampler_of(config)
    for step in range(5):
        batch = sampler.batch(step)
        assert batch.images.isfinite().all()
        assert batch.labels.dtype == torch.uint8
        assert batch.labels.max() <= 2


def test_an_opaque_mass_changes_its_patch_and_nothing_else():
    patches = PatchConfig((16, 16, 16), 2, 0.0, 1.0)
    plain = sampler_of(experiment(patches, STILL)).batch(0)
    dense = sampler_of(experiment(patches, dataclasses.replace(STILL, opaque_mass_probability=1.0))).batch(0)
    in_mass = dense.labels == IN_LUNG
    assert in_mass.any()
    assert (plain.labels[in_mass] > 0).all()
    assert torch.equal(dense.labels[~in_mass], plain.labels[~in_mass])
    never = dataclasses.replace(STILL, opaque_mass_probability=0.0)
    assert torch.equal(sampler_of(experiment(patches, never)).batch(0).images, plain.images)


def test_cut_fills_what_lies_outside():
    cut = cut_centred(torch.ones((4, 4, 4), dtype=torch.int16), (0, 3, 2), (4, 4, 4), fill=-9)
    assert (cut[:2] == -9).all()
    assert (cut[:, 3:] == -9).all()
    assert (cut[2:, :3] == 1).all()
