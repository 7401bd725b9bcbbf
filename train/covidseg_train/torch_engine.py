"""A torch network behind the runtime's engine protocol, for validation and for parity checks."""

import numpy as np
import torch
from numpy.typing import NDArray

from covidseg_runtime.engines.engine import GPU_BATCH
from covidseg_train.unet import SegmentationNetwork


class TorchEngine:
    """Runs a ``UNet3d`` on tiles; only the finest head is computed."""

    name = "torch"
    any_tile = True

    def __init__(self, network: SegmentationNetwork, *, device: torch.device, precision: str = "fp32") -> None:
        """Wrap a network; ``precision`` is ``fp32`` or ``bf16`` (autocast)."""
        self.precision = precision
        self.batch = GPU_BATCH if device.type == "cuda" else 1
        self._network = network.to(device).eval()
        self._device = device

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map tiles (N, 1, Z, Y, X) to logits (N, C, Z, Y, X)."""
        half = self.precision == "bf16"
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            logits = self._network.finest_logits(torch.from_numpy(tiles).to(self._device))
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result

    def close(self) -> None:
        """Nothing is held that needs closing."""
