import math

import pytest
import torch

from covidseg_train.losses import IGNORED, IN_LUNG, DeepSupervisionLoss, dice_cross_entropy, nearest_labels


def logits_of(probabilities):
    """Logits (N, 2, 1, 1, X) whose softmax gives class 1 these probabilities (N, X)."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack((torch.zeros_like(p), (p / (1 - p)).log()), dim=1)[:, :, None, None].float()


def labels_of(classes):
    return torch.tensor(classes, dtype=torch.uint8)[:, None, None, None]


def test_dice_pools_the_batch_and_cross_entropy_is_the_mean():
    loss = dice_cross_entropy(logits_of([[0.5, 0.75], [0.25, 0.5]]), labels_of([[1, 0], [1, 0]]))
    dice = 2 * (0.5 + 0.25) / (0.5 + 0.75 + 0.25 + 0.5 + 2)
    cross_entropy = -(math.log(0.5) + math.log(0.25) + math.log(0.25) + math.log(0.5)) / 4
    assert float(loss) == pytest.approx(1 - dice + cross_entropy, abs=1e-5)


def test_what_is_ignored_takes_no_part_in_loss_and_gradient():
    logits = logits_of([[0.5, 0.75], [0.25, 0.9]]).requires_grad_()
    loss = dice_cross_entropy(logits, labels_of([[1, 0], [1, IGNORED]]))
    dice = 2 * (0.5 + 0.25) / (0.5 + 0.75 + 0.25 + 2)
    cross_entropy = -(math.log(0.5) + math.log(0.25) + math.log(0.25)) / 3
    assert float(loss.detach()) == pytest.approx(1 - dice + cross_entropy, abs=1e-5)
    loss.backward()
    assert not logits.grad[1, ..., 1].any()
    assert logits.grad[1, ..., 0].all()
    assert logits.grad[0].all()


def test_a_batch_of_which_nothing_is_known_teaches_nothing():
    logits = torch.randn(1, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = dice_cross_entropy(logits, torch.full((1, 1, 2, 2, 2), IGNORED, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_in_the_lung_every_class_but_the_background_is_right():
    # Two voxels: lung for sure, and one that is lung or lesion; Dice counts the first alone.
    p = torch.tensor([[0.25, 0.6, 0.15], [0.2, 0.3, 0.5]])
    logits = p.log().T[None, :, None, None].requires_grad_()
    loss = dice_cross_entropy(logits, labels_of([[1, IN_LUNG]]))
    dice_lung, dice_lesion = 2 * 0.6 / (0.6 + 1), 0.0
    cross_entropy = -(math.log(0.6) + math.log(0.3 + 0.5)) / 2
    assert float(loss.detach()) == pytest.approx(1 - (dice_lung + dice_lesion) / 2 + cross_entropy, abs=1e-4)
    loss.backward()
    background, lung, lesion = logits.grad[0, :, 0, 0, 1].tolist()
    assert background > 0
    assert lung < 0
    assert lung / lesion == pytest.approx(0.3 / 0.5)  # which of the two it is, stays as it was


def test_dice_is_the_mean_of_the_foreground_classes():
    # Three voxels of classes 0, 1, 2; all probability on 0, 1, 1: Dice 2/3 of class 1 and 0 of class 2.
    logits = 30.0 * torch.tensor([[[1.0, 0, 0], [0, 1, 1], [0, 0, 0]]])[:, :, None, None]
    loss = dice_cross_entropy(logits, labels_of([[0, 1, 2]]))
    assert float(loss) == pytest.approx(1 - (2 / 3 + 0) / 2 + 30 / 3, abs=1e-4)


def test_nothing_marked_and_nothing_found_is_a_perfect_dice():
    logits = 40.0 * torch.tensor([[[1.0, 1], [-1, -1]]])[:, :, None, None]
    assert float(dice_cross_entropy(logits, labels_of([[0, 0]]))) == pytest.approx(0, abs=1e-6)


def test_the_loss_is_float32_whatever_the_logits_are():
    labels = labels_of([[1, 0]])
    half = logits_of([[0.5, 0.75]]).bfloat16()
    loss = dice_cross_entropy(half, labels)
    assert loss.dtype == torch.float32
    assert float(loss) == float(dice_cross_entropy(half.float(), labels))


def test_ignored_labels_stay_ignored_at_coarser_levels():
    labels = labels_of([[0, 0, IGNORED, IGNORED]])
    assert nearest_labels(labels, (1, 1, 2)).flatten().tolist() == [0, IGNORED]


def test_perfect_logits_have_almost_no_loss():
    labels = torch.randint(0, 4, (1, 1, 8, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = 40.0 * torch.nn.functional.one_hot(labels[:, 0].long(), 4).movedim(-1, 1).float()
    assert DeepSupervisionLoss()([logits], labels) < 1e-3


def test_levels_weigh_two_to_one():
    labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
    labels[..., :4] = 3
    torch.manual_seed(0)
    fine, coarse = torch.randn(1, 4, 8, 8, 8), torch.randn(1, 4, 4, 4, 4)
    loss = DeepSupervisionLoss()
    expected = 2 / 3 * loss([fine], labels) + 1 / 3 * loss([coarse], nearest_labels(labels, (4, 4, 4)))
    assert torch.allclose(loss([fine, coarse], labels), expected)


def test_nearest_labels_keeps_classes_and_type():
    labels = torch.tensor([0, 0, 3, 3], dtype=torch.uint8).reshape(1, 1, 1, 1, 4)
    coarse = nearest_labels(labels, (1, 1, 2))
    assert coarse.dtype == torch.uint8
    assert coarse.flatten().tolist() == [0, 3]
