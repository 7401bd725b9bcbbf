"""Checkpoint network → fp32 ONNX: fixed tile, dynamic batch, one self-contained file."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch

from covidseg_export.exportable import ExportableUNet, NormalisationForm
from covidseg_train.unet import SegmentationNetwork

OPSET = 20
INPUT_NAME = "tiles"
OUTPUT_NAME = "logits"
LARGEST_BATCH = 64


def export_onnx(
    network: SegmentationNetwork,
    tile_shape: tuple[int, int, int],
    *,
    normalisation: NormalisationForm = "axis-wise",
) -> bytes:
    """Export a network.

    Args:
        network: The network; its weights are not changed.
        tile_shape: (z, y, x), fixed in the graph; the batch stays free.
        normalisation: How instance normalisation is written, see ``exportable``: ``axis-wise`` for the fp32 file,
            ``native`` for what fp16 and int8 are made from.

    Returns:
        A checked ONNX model with input ``tiles`` (N, 1, Z, Y, X) and output ``logits`` (N, C, Z, Y, X), opset 20,
        without external data and without traces of the machine it was made on.
    """
    # The example has two tiles: with one, the exporter takes the batch for a constant.
    example = torch.zeros(2, network.spec.in_channels, *tile_shape)
    with _quiet_exporter():
        program = torch.onnx.export(
            ExportableUNet(network, normalisation),
            (example,),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program although no file was named.")
    model: onnx.ModelProto = program.model_proto
    _strip_metadata(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes for debugging: it holds stack traces with the paths of this machine."""
    del model.metadata_props[:]
    graph = model.graph
    del graph.metadata_props[:]
    del graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hold back what the exporter says of things that are not ours: torchvision missing, its own deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="onnxscript")
            yield
    finally:
        logger.setLevel(level)
