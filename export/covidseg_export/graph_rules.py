"""What must hold of a graph whatever its numbers say on this machine.

CPU engines compute a half-precision normalisation in float32, so no comparison made on a CPU can tell that it would
overflow on a GPU. The types in the graph can.
"""

import onnx
from onnx import TensorProto

from covidseg_export.precision import last_convolutions
from covidseg_runtime.errors import BundleError

# Operators that sum over more voxels than half precision can count.
SUMS = frozenset(
    {
        "AveragePool",
        "GlobalAveragePool",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LpNormalization",
        "ReduceMean",
        "ReduceSum",
        "Softmax",
    }
)


def require_float_sums(model: bytes, name: str) -> None:
    """Refuse a graph that sums over a tile, or gives logits, in half precision.

    Args:
        model: An ONNX file.
        name: Its name, for the error.

    Raises:
        BundleError: Naming the node.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model), strict_mode=True).graph
    half = {
        value.name
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    } | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    last = last_convolutions(graph)
    for node in graph.node:
        must_be_float = node.op_type in SUMS or node.output[0] in last
        if must_be_float and not half.isdisjoint((*node.input, *node.output)):
            raise BundleError(
                f"{name} computes {node.op_type} {node.name or node.output[0]} in half precision; sums over a tile "
                "overflow there, and the last layer decides labels. Nothing was written."
            )
