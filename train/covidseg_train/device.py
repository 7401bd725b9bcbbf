"""The device and precision a training runs on, chosen in one place."""

from typing import Literal

import torch

from covidseg_runtime.errors import EngineError

Precision = Literal["fp32", "bf16"]


def choose_device(wish: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:n`` into a device that is there.

    Raises:
        EngineError: If CUDA was asked for and is not there, or the word is unknown.
    """
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
    except RuntimeError as error:
        raise EngineError(f"There is no device {wish!r}; auto, cpu, cuda or cuda:n fits.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"Device {wish!r} was asked for; torch sees {torch.cuda.device_count()} CUDA devices. Use --device cpu."
        )
    return device


def choose_precision(wish: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """bfloat16 where the device multiplies it natively: any recent GPU, CPUs with AVX-512 BF16 or AMX."""
    if wish != "auto":
        return wish
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
