import pytest
import torch

from covidseg_runtime.errors import SettingsError
from covidseg_train.unet import UNet3d, UNetSpec, count_parameters

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


def test_strides_that_do_not_fit_are_refused():
    with pytest.raises(SettingsError, match="3 widths need 2 strides, 1 were given"):
        UNetSpec(widths=(4, 8, 8), strides=((2, 2, 2),))
