"""A torch network behind the runtime's protocol."""

import numpy as np
import torch

from covidseg_runtime.sliding_window import predict_tiled
from covidseg_runtime.tiling import TilePlan
from covidseg_train.torch_engine import TorchEngine
from covidseg_train.unet import UNet3d, UNetSpec


def test_batches_of_three_give_the_logits_of_single_tiles():
    torch.manual_seed(0)
    network = UNet3d(UNetSpec(widths=(4, 8, 8), strides=((2, 2, 2), (1, 2, 2)), supervised_levels=1))
    engine = TorchEngine(network, device=torch.device("cpu"))
    assert engine.batch == 1
    image = np.random.default_rng(1).normal(size=(20, 24, 24)).astype(np.float32)  # 8 tiles: 3, 3 and 2

    def logits():
        slabs = predict_tiled(engine, image, TilePlan((16, 16, 16), 0.5), lambda cut: cut)
        return np.concatenate([slab.logits for slab in slabs], axis=1)

    alone = logits()
    engine.batch = 3
    np.testing.assert_allclose(
        logits(), alone, rtol=0, atol=1e-4
    )  # of up to 10; another batch adds up in another order
    assert np.ptp(alone) > 0.1
