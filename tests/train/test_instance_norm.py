import pytest
import torch
from torch import nn

from covidseg_train.instance_norm import InstanceNorm


def outcome(norm, features, seed=3):
    """What the normalisation gives, and the gradients of features, scale and shift of a random weighting of it."""
    features = features.clone().requires_grad_()
    result = norm(features)
    weighting = torch.randn(result.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (result.double() * weighting).sum().backward()
    return result.detach(), features.grad, norm.weight.grad, norm.bias.grad


def norm_like(kind, dtype):
    norm = kind(5, affine=True).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, -1.0, 2.0, 3.0]))
        norm.bias.copy_(torch.arange(5.0))
    return norm


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("samples", [1, 3])
def test_channels_last_features_get_torchs_values_and_gradients(dtype, tolerance, samples):
    features = (torch.randn(samples, 5, 6, 7, 9, generator=torch.Generator().manual_seed(1)) * 2 + 3).to(dtype)
    last = features.contiguous(memory_format=torch.channels_last_3d)
    ours = outcome(norm_like(InstanceNorm, torch.float32), last)
    truth = outcome(norm_like(nn.InstanceNorm3d, torch.float64), features.double())
    assert ours[0].is_contiguous(memory_format=torch.channels_last_3d)
    assert ours[0].dtype == dtype
    for value, expected in zip(ours, truth, strict=True):
        assert (value - expected).abs().max() < tolerance * expected.abs().max()


def test_the_sums_of_a_large_patch_keep_their_digits():
    features = torch.randn(1, 16, 80, 80, 80, generator=torch.Generator().manual_seed(1)) + 5
    norm = InstanceNorm(16, affine=True)
    truth = nn.InstanceNorm3d(16, affine=True).double()(features.double())
    ours = norm(features.contiguous(memory_format=torch.channels_last_3d))
    assert (ours - truth).abs().max() < 2e-6 * truth.abs().max()


def test_features_of_the_plain_layout_go_torchs_way():
    features = torch.randn(2, 5, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(InstanceNorm(5, affine=True)(features), nn.InstanceNorm3d(5, affine=True)(features))
