"""Shared phantom and bundle.

The phantom is all soft tissue with two lungs of different density and one opacity, so that a
pointwise network of four straight lines tells the four labels apart by HU alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

# logit = slope * HU / 100 + intercept. The highest line changes at -775, -500 and -150 HU.
SLOPES = np.array([3.0, 0.0, 1.0, 2.0], np.float32)
INTERCEPTS = np.array([14.25, 0.0, 7.75, 12.75], np.float32)
HU_OF_LABEL = (40, -850, -700, -300)
TILE_SHAPE = (16, 16, 16)
PHANTOM_SPACING_MM = (2.0, 1.5, 1.5)


def pointwise_logits(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    """The tiny network: (N, 1, Z, Y, X) -> (N, 4, Z, Y, X)."""
    return tiles * SLOPES[:, None, None, None] + INTERCEPTS[:, None, None, None]


def phantom_labels() -> NDArray[np.uint8]:
    """(Z, Y, X) uint8 in orientation SPL, different along every axis."""
    labels = np.zeros((28, 36, 44), np.uint8)
    labels[4:24, 8:28, 5:19] = 2  # X grows towards the left, so the right lung comes first
    labels[6:22, 8:28, 25:39] = 1
    labels[8:14, 10:17, 27:34] = 3
    return labels


def phantom_hu() -> NDArray[np.int16]:
    """(Z, Y, X) int16 HU of `phantom_labels`."""
    return np.array(HU_OF_LABEL, np.int16)[phantom_labels()]


def spl_affine(spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """The affine of an array (Z, Y, X) that grows towards superior, posterior, left."""
    affine = np.zeros((4, 4))
    affine[2, 0] = spacing_mm[0]  # Z -> superior
    affine[1, 1] = -spacing_mm[1]  # Y -> posterior
    affine[0, 2] = -spacing_mm[2]  # X -> left
    affine[:, 3] = (31.0, 17.0, -250.0, 1.0)
    return affine


def write_tiny_bundle(folder: Path, model: bytes) -> Path:
    """A bundle around `model` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    (folder / "bundle.json").write_text(json.dumps(tiny_description(model)), encoding="utf-8")
    return folder


def tiny_description(model: bytes) -> dict[str, Any]:
    """The bundle.json of the tiny network."""
    return {
        "schema_version": 1,
        "name": "tiny",
        "version": "1.2.3",
        "labels": {"0": "background", "1": "left lung", "2": "right lung", "3": "infection"},
        "classes": ["background", "left lung", "right lung", "infection"],
        "preprocessing": {
            "orientation": "SPL",
            "spacing_mm": list(PHANTOM_SPACING_MM),
            "scaling": {"lower_hu": -1000.0, "upper_hu": 200.0, "mean_hu": 0.0, "sd_hu": 100.0},
        },
        "tile_plan": {"tile_shape": list(TILE_SHAPE), "step": 0.5, "importance_sigma": 0.125, "average": "logits"},
        "metrics": {"held_out": []},
        "intended_use": "tests",
        "licence": "CC0-1.0",
        "files": [
            {
                "role": "model",
                "name": "model.onnx",
                "sha256": hashlib.sha256(model).hexdigest(),
                "precision": "fp32",
            }
        ],
    }


def tiny_model() -> bytes:
    """An ONNX network of one 1x1x1 convolution, 1 -> 4 channels, with a dynamic batch."""
    return tiny_model_proto().SerializeToString()


def tiny_model_proto() -> Any:
    """`tiny_model` before it is bytes."""
    onnx = pytest.importorskip("onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Conv", ["tiles", "weight", "bias"], ["logits"])],
        "tiny",
        [helper.make_tensor_value_info("tiles", float32, ["n", 1, *TILE_SHAPE])],
        [helper.make_tensor_value_info("logits", float32, ["n", 4, *TILE_SHAPE])],
        [
            onnx.numpy_helper.from_array(SLOPES.reshape(4, 1, 1, 1, 1), "weight"),
            onnx.numpy_helper.from_array(INTERCEPTS, "bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
