import pytest
import torch

from covidseg_runtime.errors import SettingsError
from covidseg_train.unet import BENCHMARK_SPEC, MultiTaskUNet, UNet3d, UNetSpec, count_parameters

SMALL = UNetSpec(widths=(4, 8, 8), strides=((2, 2, 2), (1, 2, 2)), supervised_levels=2)


def test_logits_have_the_shape_of_the_image_and_of_each_level():
    finest, coarser = UNet3d(SMALL)(torch.zeros(2, 1, 8, 16, 16))
    assert finest.shape == (2, 3, 8, 16, 16)
    assert coarser.shape == (2, 3, 4, 8, 8)


def test_finest_logits_equal_the_first_head():
    torch.manual_seed(0)
    network, image = UNet3d(SMALL).eval(), torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(network.finest_logits(image), network(image)[0])


def test_every_parameter_learns():
    torch.manual_seed(0)
    network = UNet3d(SMALL)
    sum(logits.square().mean() for logits in network(torch.randn(1, 1, 8, 16, 16))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_divisor_is_the_product_of_strides():
    assert SMALL.divisor() == (2, 4, 4)


def test_count_parameters_of_a_hand_counted_network():
    spec = UNetSpec(classes=2, widths=(1, 1), strides=((2, 2, 2),), supervised_levels=1)
    # encoder: 4 blocks of 27 + 2; up: 8 + 1; decoder: 2*27 + 2 and 27 + 2; head: 2 + 2
    assert count_parameters(UNet3d(spec)) == 4 * 29 + 9 + 56 + 29 + 4


def test_the_benchmark_s_network_has_the_published_size():
    with torch.device("meta"):
        network = UNet3d(BENCHMARK_SPEC)
    assert count_parameters(network.encoder) / 1e6 == pytest.approx(14.0, abs=0.05)
    assert count_parameters(network.decoder) / 1e6 == pytest.approx(16.7, abs=0.05)
    assert count_parameters(network) / 1e6 == pytest.approx(30.7, abs=0.05)


def test_the_benchmark_s_network_halves_its_patch_to_7_by_5_by_6():
    with torch.device("meta"):
        network, image = UNet3d(BENCHMARK_SPEC), torch.zeros(1, 1, 56, 160, 192)
        bottleneck, logits = network.encode(image)[-1], network(image)
    assert bottleneck.shape == (1, 320, 7, 5, 6)
    assert [tuple(level.shape[1:]) for level in logits] == [
        (2, 56, 160, 192),
        (2, 56, 80, 96),
        (2, 28, 40, 48),
        (2, 14, 20, 24),
    ]


@pytest.mark.parametrize(("normalisation", "depends"), [("batch", False), ("instance", True)])
def test_what_is_said_of_a_voxel_depends_on_the_far_end_of_the_tile_by_instance_normalisation_only(
    normalisation, depends
):
    torch.manual_seed(0)
    spec = UNetSpec(widths=(4, 8), strides=((2, 2, 2),), supervised_levels=1, normalisation=normalisation)
    network, tile = UNet3d(spec).eval(), torch.randn(1, 1, 32, 8, 8)
    other = tile.clone()
    other[:, :, 28:] = 5.0
    near, near_in_other = (network.finest_logits(one)[:, :, :4] for one in (tile, other))
    assert torch.allclose(near, near_in_other, atol=1e-6) is not depends


def test_each_task_has_heads_of_its_own_on_a_shared_body():
    torch.manual_seed(0)
    network, image = MultiTaskUNet(SMALL, ("nodule", "tumour")), torch.randn(1, 1, 8, 8, 8)
    decoded = network.decoder(network.encode(image))
    assert torch.equal(network(image)[0], network.heads[0](decoded[0]))
    assert torch.equal(network(image, "nodule")[0], network(image)[0])
    assert torch.equal(network(image, "tumour")[0], network.other_heads["tumour"][0](decoded[0]))
    assert not torch.equal(network(image, "tumour")[0], network(image)[0])


def test_a_task_teaches_its_own_heads_and_the_body():
    torch.manual_seed(0)
    network = MultiTaskUNet(SMALL, ("nodule", "tumour"))
    sum(logits.square().mean() for logits in network(torch.randn(1, 1, 8, 16, 16), "tumour")).backward()
    taught = {name for name, value in network.named_parameters() if value.grad is not None}
    assert taught == {name for name, _ in network.named_parameters() if not name.startswith("heads.")}


def test_strides_that_do_not_fit_are_refused():
    with pytest.raises(SettingsError, match="3 widths need 2 strides, 1 were given"):
        UNetSpec(widths=(4, 8, 8), strides=((2, 2, 2),))


def test_more_supervised_levels_than_the_decoder_has_are_refused():
    with pytest.raises(SettingsError, match="supervised_levels is 2; 1 to 1 fits"):
        UNetSpec(widths=(4, 8), strides=((2, 2, 2),), supervised_levels=2)


def test_a_kernel_of_two_is_refused():
    with pytest.raises(SettingsError, match="each number must be 1 or 3"):
        UNetSpec(finest_kernel=(2, 3, 3))
