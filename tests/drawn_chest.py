"""A drawn (simulated) chest of known lungs and infection, and the tiny experiment that learns from it in seconds."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

SPACING_MM = 3.0

EXPERIMENT = """\
name = "tiny"

[data]
dataset = "covid-19-ct-seg-rebuilt"
root = {root!r}
train = ["case_a"]
validation = ["case_b"]
test = ["case_c"]
cache = {cache!r}

[grid]
spacing_mm = [3.0, 3.0, 3.0]

[network]
widths = [4, 8]
strides = [[2, 2, 2]]
supervised_levels = 1

[patches]
shape = [16, 16, 16]

[tiles]
shape = [32, 32, 32]

[optimiser]
name = "adamw"
learning_rate = 0.01
ema_decay = 0.5

[run]
epochs = 4
steps_per_epoch = 5
validate_every = 2
precision = "fp32"
"""


def drawn_chest() -> tuple[NDArray[np.int16], *tuple[NDArray[np.bool_], ...]]:
    """(Z, Y, X) HU at 3 mm, and the masks of left lung, right lung, trachea and bowel; x grows to the left."""
    z, y, x = np.mgrid[:60, :80, :110]
    hu = np.full(z.shape, -1000, np.int16)
    hu[((y - 40) / 34) ** 2 + ((x - 55) / 50) ** 2 < 1] = 40
    right = ((z - 32) / 20) ** 2 + ((y - 40) / 18) ** 2 + ((x - 32) / 15) ** 2 < 1
    left = ((z - 32) / 20) ** 2 + ((y - 40) / 18) ** 2 + ((x - 78) / 15) ** 2 < 1
    hu[right | left] = -850
    trachea = ((y - 45) ** 2 + (x - 55) ** 2 < 9) & (z > 40)
    hu[trachea] = -1000
    bowel = ((z - 4) ** 2 + (y - 30) ** 2 + (x - 70) ** 2) < 16
    hu[bowel] = -900
    return hu, left, right, trachea, bowel


def write_drawn_case(folder: Path, name: str) -> Path:
    """Write the chest with an infection of -300 HU in its right lung as a case of the dataset; its CT comes back."""
    hu, _, right, _, _ = drawn_chest()
    infection = np.zeros(hu.shape, np.bool_)
    infection[25:38, 46:56, 26:38] = right[25:38, 46:56, 26:38]
    hu[infection] = -300
    affine = np.diag([-SPACING_MM, -SPACING_MM, SPACING_MM, 1.0])  # LPS
    for what, array in (("ct", hu), ("infection", infection.astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array.T), affine), folder / f"{name}_{what}.nii.gz")
    return folder / f"{name}_ct.nii.gz"


def write_tiny_experiment(folder: Path) -> Path:
    """Write three cases and ``tiny.toml`` into ``folder``; the TOML's path comes back."""
    for name in ("case_a", "case_b", "case_c"):
        write_drawn_case(folder, name)
    path = folder / "tiny.toml"
    path.write_text(EXPERIMENT.format(root=str(folder), cache=str(folder / "cache")), encoding="utf-8")
    return path
