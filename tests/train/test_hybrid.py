import pytest
import torch

from covidseg_train.hybrid import HybridEncoderUNet, SelectiveFusion
from covidseg_train.unet import BENCHMARK_SPEC, UNet3d, UNetSpec, count_parameters

SMALL = UNetSpec(widths=(4, 8, 8), strides=((2, 2, 2), (1, 2, 2)), supervised_levels=2)
CHANNELS = 6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def two_maps():
    return torch.randn(2, CHANNELS, 3, 4, 5), torch.randn(2, CHANNELS, 3, 4, 5)


def force(fusion, adapted_score, dedicated_score):
    """Make the selection give these scores whatever it sees."""
    torch.nn.init.zeros_(fusion.select.weight)
    with torch.no_grad():
        fusion.select.bias.copy_(torch.tensor([adapted_score] * CHANNELS + [dedicated_score] * CHANNELS))


def test_the_hybrid_has_a_second_encoder_and_the_fusion_more_than_the_benchmark_s_network():
    with torch.device("meta"):
        hybrid, plain = HybridEncoderUNet(BENCHMARK_SPEC), UNet3d(BENCHMARK_SPEC)
    without_fusion = count_parameters(hybrid) - count_parameters(hybrid.fusions)
    assert without_fusion == count_parameters(plain) + count_parameters(plain.encoder)
    assert without_fusion / 1e6 == pytest.approx(44.7, abs=0.05)
    # A stage of C channels: C·32 to squeeze, 2·32 of the normalisation, 32·2C + 2C to select.
    assert count_parameters(hybrid.fusions) == sum(32 * c + 64 + 64 * c + 2 * c for c in BENCHMARK_SPEC.widths)


@pytest.mark.parametrize("fusion", ["selective", "concatenation"])
def test_logits_have_the_shapes_of_the_plain_network(fusion):
    image = torch.randn(2, 1, 8, 16, 16)
    hybrid, plain = HybridEncoderUNet(SMALL, fusion), UNet3d(SMALL)
    assert [one.shape for one in hybrid(image)] == [one.shape for one in plain(image)]
    assert torch.equal(hybrid.eval().finest_logits(image), hybrid(image)[0])


@pytest.mark.parametrize("fusion", ["selective", "concatenation"])
def test_every_parameter_learns(fusion):
    network = HybridEncoderUNet(SMALL, fusion)
    sum(logits.square().mean() for logits in network(torch.randn(2, 1, 8, 16, 16))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_the_shares_of_the_two_branches_sum_to_one():
    fusion, (features, _) = SelectiveFusion(CHANNELS), two_maps()
    assert torch.allclose(fusion(features, features), features, atol=1e-6)
    shares = fusion(torch.ones(1, CHANNELS, 1, 1, 1), torch.zeros(1, CHANNELS, 1, 1, 1))
    assert (shares > 0).all()
    assert (shares < 1).all()


def test_a_forced_selection_picks_one_branch():
    fusion, (adapted, dedicated) = SelectiveFusion(CHANNELS), two_maps()
    force(fusion, 50.0, -50.0)
    assert torch.allclose(fusion(adapted, dedicated), adapted)
    force(fusion, -50.0, 50.0)
    assert torch.allclose(fusion(adapted, dedicated), dedicated)
    force(fusion, 0.0, 0.0)
    assert torch.allclose(fusion(adapted, dedicated), (adapted + dedicated) / 2)


def test_each_channel_is_selected_on_its_own():
    fusion, (adapted, dedicated) = SelectiveFusion(CHANNELS), two_maps()
    force(fusion, 0.0, 0.0)
    with torch.no_grad():
        fusion.select.bias[2] = 50.0  # the adapted branch's score of the third channel
    fused = fusion(adapted, dedicated)
    assert torch.allclose(fused[:, 2], adapted[:, 2])
    assert torch.allclose(fused[:, 3], (adapted[:, 3] + dedicated[:, 3]) / 2)


def test_the_selection_sees_the_means_of_the_summed_maps_only():
    fusion, (adapted, dedicated) = SelectiveFusion(CHANNELS), two_maps()
    # Voxels in another order have the same means: the same shares in the same other order.
    fused, swapped = fusion(adapted, dedicated), fusion(adapted.flip(2), dedicated.flip(2))
    assert torch.allclose(swapped, fused.flip(2), atol=1e-6)


def test_a_hybrid_whose_fusions_pick_the_adapted_encoder_is_the_plain_network():
    plain, hybrid, image = UNet3d(SMALL), HybridEncoderUNet(SMALL), torch.randn(1, 1, 8, 16, 16)
    hybrid.adapted_encoder.load_state_dict(plain.encoder.state_dict())
    hybrid.decoder.load_state_dict(plain.decoder.state_dict())
    hybrid.heads.load_state_dict(plain.heads.state_dict())
    for fusion, width in zip(hybrid.fusions, SMALL.widths, strict=True):
        torch.nn.init.zeros_(fusion.select.weight)
        with torch.no_grad():
            fusion.select.bias.copy_(torch.tensor([50.0] * width + [-50.0] * width))
    assert torch.allclose(hybrid.finest_logits(image), plain.finest_logits(image), atol=1e-5)
