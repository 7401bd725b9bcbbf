"""fp32 ONNX → fp16 ONNX: precision lives in the graph, where every engine reads the same.

Convolutions, activations and what merely passes their results on are computed in half. Float stay: everything that
sums over a tile (normalisation and means: 884,736 voxels overflow half's 65,504 at a mean of 0.08), the small dense
part of selective fusion, the last convolution with what follows it, input and output. A cast stands only where the
two meet, so that every operator's inputs have one type, as TensorRT demands.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from covidseg_runtime.errors import BundleError

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
FLUSHED_WEIGHTS = "weights_rounded_to_zero"
# Give no number larger than those they take.
_BOUNDED = frozenset({"LeakyRelu", "Relu", "Concat"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul"})


def to_fp16(model: bytes) -> bytes:
    """Compute the convolutions of an exported network in half.

    Args:
        model: A float32 ONNX model, as ``export_onnx`` makes it.

    Returns:
        The checked model, with float32 input and output. Its metadata ``weights_rounded_to_zero`` counts the weights
        that are too small for half.

    Raises:
        BundleError: If a weight is too large for half.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    tensors = _TypedTensors(graph, half_tensors(graph))
    nodes = [node for original in graph.node for node in tensors.retype(original)]
    replace_content(graph, nodes, tensors.initialisers)
    helper.set_model_props(proto, {FLUSHED_WEIGHTS: str(tensors.flushed)})
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def half_tensors(graph: GraphProto) -> frozenset[str]:
    """Names of the tensors to be computed in half.

    Convolutions are, but for the last. An activation or concatenation is where any user wants half: a cast before it
    costs no more than after. Arithmetic is where all users want half and any input is half, so that neither the
    centred squares of a variance nor the sum of a global mean are.
    """
    users = users_of(graph)
    outputs, last = {output.name for output in graph.output}, last_convolutions(graph)
    half: set[str] = set()
    for node in reversed(graph.node):
        name = node.output[0]
        wishes = [user.output[0] in half for user in users[name]]
        if name in outputs or name in last:
            continue
        if (
            node.op_type in CONVOLUTIONS
            or (node.op_type in _BOUNDED and any(wishes))
            or (node.op_type in _ARITHMETIC and all(wishes))
        ):
            half.add(name)
    for node in graph.node:
        if node.op_type in _ARITHMETIC and half.isdisjoint(node.input):
            half.discard(node.output[0])
    return frozenset(half)


def last_convolutions(graph: GraphProto) -> frozenset[str]:
    """Outputs of the convolutions that no other one follows: the logits, of every network of an ensemble."""
    followed: set[str] = set()
    last = set()
    for node in reversed(graph.node):
        is_followed = not followed.isdisjoint(node.output)
        if is_followed or node.op_type in CONVOLUTIONS:
            followed.update(node.input)
        if not is_followed and node.op_type in CONVOLUTIONS:
            last.add(node.output[0])
    return frozenset(last)


def users_of(graph: GraphProto) -> Mapping[str, Sequence[NodeProto]]:
    """The nodes that read each tensor; none for a name that no node reads."""
    users: defaultdict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    return users


def replace_content(graph: GraphProto, nodes: Sequence[NodeProto], initialisers: Mapping[str, TensorProto]) -> None:
    """Put other nodes into a graph, and those of the initialisers that they read."""
    read = {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in initialisers.items() if name in read]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


class _TypedTensors:
    """Hands out every tensor in the type that a node computes in."""

    def __init__(self, graph: GraphProto, half: frozenset[str]) -> None:
        self.initialisers = {tensor.name: tensor for tensor in graph.initializer}
        self.flushed = 0
        self._half = half
        self._made: set[str] = set()

    def retype(self, node: NodeProto) -> Iterator[NodeProto]:
        """The node reading tensors of its own type, after the casts that it is the first to need."""
        retyped = NodeProto()
        retyped.CopyFrom(node)
        for index, name in enumerate(node.input):
            is_half, wants_half = name in self._half, node.output[0] in self._half
            if is_half == wants_half or not name:
                continue
            retyped.input[index] = typed = f"{name}.fp16" if wants_half else f"{name}.fp32"
            if typed in self._made:
                continue
            self._made.add(typed)
            if name in self.initialisers:
                self.initialisers[typed] = self._halve(self.initialisers[name], typed)
            else:
                yield helper.make_node(
                    "Cast", [name], [typed], typed, to=TensorProto.FLOAT16 if wants_half else TensorProto.FLOAT
                )
        yield retyped

    def _halve(self, tensor: TensorProto, name: str) -> TensorProto:
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise BundleError(
                f"{tensor.name} holds the weight {np.abs(values).max():.3g}; half precision ends at 65504. "
                "Export this network in fp32."
            )
        self.flushed += int(np.count_nonzero((halves == 0) & (values != 0)))
        return numpy_helper.from_array(halves, name)
