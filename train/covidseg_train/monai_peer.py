"""The peer of a bundle: the same network in torch, with MONAI's transforms and sliding window around it.

It does end to end what the runtime does, by the usual means: turn, resample, window, slide over the whole scan (there
is no box around the lungs), resample the logits back, take the largest. Nothing is removed afterwards.
"""

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Orientation, ScaleIntensityRange, Spacing
from numpy.typing import NDArray

from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.errors import EngineError
from covidseg_runtime.volume import Volume
from covidseg_train.device import choose_device, choose_precision
from covidseg_train.torch_engine import TorchEngine
from covidseg_train.unet import SegmentationNetwork

PEER_PRECISIONS = ("f32", "bf16")


class MonaiPeer:
    """Segments scans with torch and MONAI.

    Example:
        >>> peer = MonaiPeer(network, bundle, device="cpu")  # doctest: +SKIP
        >>> peer.segment(volume).shape == volume.shape       # doctest: +SKIP
        True
    """

    def __init__(
        self, network: SegmentationNetwork, bundle: ModelBundle, *, device: str, precision: str = "f32"
    ) -> None:
        """Put the network on its device.

        Args:
            network: The bundle's network.
            bundle: Says how a scan is prepared and tiled.
            device: "auto", "cpu", "cuda" or "cuda:n".
            precision: "f32", or "bf16" (autocast) where the device multiplies it.

        Raises:
            EngineError: if device or precision are not to be had.
        """
        self._device = choose_device(device)
        if precision not in PEER_PRECISIONS:
            raise EngineError(f"torch + MONAI is run in {' or '.join(PEER_PRECISIONS)}, not in {precision}")
        if precision == "bf16" and choose_precision("auto", self._device) != "bf16":
            raise EngineError(f"{self._device} does not multiply bf16 natively, so torch would emulate it")
        self._network, self._bundle = network.to(self._device).eval(), bundle
        self._half = precision == "bf16"
        self._engine = TorchEngine(network, device=self._device, precision="bf16" if self._half else "fp32")

    @property
    def device(self) -> str:
        """What it runs on: "cpu" or "cuda:n"."""
        return "cpu" if self._device.type == "cpu" else f"cuda:{self._device.index or 0}"

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map tiles (N, 1, Z, Y, X) to logits (N, C, Z, Y, X)."""
        return self._engine.predict(tiles)

    def segment(self, volume: Volume) -> NDArray[np.uint8]:
        """Label a CT in HU: (X, Y, Z) uint8 on its own grid."""
        turn, resample = self._grid_transforms()
        image = MetaTensor(torch.from_numpy(np.array(volume.voxels, np.float32))[None], affine=volume.affine)
        with torch.inference_mode():
            image = self._window()(resample(turn(image.to(self._device))))  # (1, Z, Y, X)
            logits = self._slide()(image[None], self._logits)[0]  # (C, Z, Y, X)
            logits.applied_operations = image.applied_operations
            logits = resample.inverse(logits)
            # Before the axes are turned: on the turned view argmax takes three times as long.
            chosen = logits.argmax(0, keepdim=True)
            chosen.applied_operations = logits.applied_operations
            classes: NDArray[np.int64] = turn.inverse(chosen)[0].cpu().numpy()  # (X, Y, Z)
        return self._bundle.label_of_class[classes]

    def _grid_transforms(self) -> tuple[Any, Any]:
        """Scan to the model's orientation, and to its spacing over the same length."""
        spec = self._bundle.preprocessing
        turn = Orientation(axcodes=spec.orientation, labels=(("L", "R"), ("P", "A"), ("I", "S")))
        return turn, Spacing(pixdim=spec.spacing_mm, scale_extent=True, padding_mode="border", dtype=np.float32)

    def _window(self) -> Any:  # noqa: ANN401 - a transform of MONAI
        """``clip_and_scale_hounsfield`` in MONAI's words."""
        scaling = self._bundle.preprocessing.scaling
        lowest, highest = ((hu - scaling.mean_hu) / scaling.sd_hu for hu in (scaling.lower_hu, scaling.upper_hu))
        return ScaleIntensityRange(scaling.lower_hu, scaling.upper_hu, lowest, highest, clip=True)

    def _slide(self) -> Any:  # noqa: ANN401 - an inferer of MONAI
        plan = self._bundle.tile_plan
        return SlidingWindowInferer(
            roi_size=plan.tile_shape,
            overlap=1 - plan.step,
            mode="gaussian",
            sigma_scale=plan.importance_sigma,
            padding_mode="replicate",
        )

    def _logits(self, tiles: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            return self._network.finest_logits(tiles.as_subclass(torch.Tensor)).float()
