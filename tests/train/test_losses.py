import torch

from covidseg_train.losses import DeepSupervisionLoss, nearest_labels


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
