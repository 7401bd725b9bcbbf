import json

import pytest
import torch

from covidseg_runtime.errors import BundleError
from covidseg_train.checkpoint import Progress, load_checkpoint, load_network, save_checkpoint
from covidseg_train.config import load_config
from covidseg_train.unet import UNet3d


def test_weights_config_and_progress_come_back(tmp_path):
    config = load_config("quick")
    torch.manual_seed(0)
    network = UNet3d(config.network)
    parts = {"network": network.state_dict(), "average": {k: v + 1 for k, v in network.state_dict().items()}}
    save_checkpoint(tmp_path / "c.safetensors", config, Progress(7, 0.5, 1.25), parts=parts)
    checkpoint = load_checkpoint(tmp_path / "c.safetensors")
    assert checkpoint.config == config
    assert checkpoint.progress == Progress(7, 0.5, 1.25)
    loaded, _ = load_network(tmp_path / "c.safetensors")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, network.state_dict()[name] + 1)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", json.dumps({"a": 1}).encode()])
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "c.safetensors"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="is not a readable checkpoint"):
        load_checkpoint(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(BundleError, match="is not a readable checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
