"""fp32 ONNX → int8 ONNX: post-training quantisation in QDQ form, which OpenVINO and TensorRT both read.

Every channel of a convolution's input is divided by the largest value it had on calibration tiles, and its weights
multiplied by it: one scale a tensor, which is all that an int8 convolution has, then fits each channel. Zero points
are 0. Float stay the outputs of all convolutions, what is no convolution, and the sensitive ones: those that read the
image or give logits and, where the network normalises each tile by its own statistics, those just before the logits and
those that end an encoder's two finest stages.

Labels that differ from float32 among 2.65 million, mean |Δlogit|: three tiles of a scan the default network never saw,
calibration on eight tiles of its training scans (OpenVINO 2026.4 on a CPU with AVX-512 VNNI):

    ONNX Runtime 1.32's quantize_static, every convolution           20,401   0.32
    … without the outputs                                            19,710   0.31
    … without the first and the last convolution                     19,431   0.30
    … and clipped at percentile 99.9                                 17,978   0.32
    … not clipped, concatenations joined as int8 (see `_input`)       5,626   0.067
    … with a range for every channel                                  3,474   0.043
    NNCF 3.4                                                         33,191
    bfloat16, for comparison                                            418   0.010

On the two scans of the parity gate the last of these changed DSC by −0.0031 and −0.0056; with the fine skips in float
by −0.0015 and −0.0055, with the convolution before the last as well by −0.0013 and −0.0039, for 9 % more time each.
That was under instance normalisation. Under batch normalisation, which the exporter folds into the convolutions, all of
them in float or none changed DSC alike (default 0.3.0: +0.0011 and −0.0012, +0.0007 and −0.0024; none, and its decision
moved, 0.4.0: +0.0001 and −0.0045; over six cases int8 and f32 are equal), and none takes 22 % less time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from covidseg_export.precision import CONVOLUTIONS, last_convolutions, replace_content
from covidseg_runtime.errors import SettingsError
from covidseg_runtime.intensity import HounsfieldScaling, clip_and_scale_hounsfield
from covidseg_runtime.lung_box import enclosed_air
from covidseg_runtime.tiling import Shape, Tile

LUNG_BELOW_HU = -500
LARGEST = 127
# A channel that hardly answered on the calibration tiles may answer on a patient.
SMALLEST_SHARE = 1 / LARGEST
DEEPEST_FINE_SKIP = 4


def to_int8(model: bytes, tiles: Iterable[NDArray[np.float32]]) -> bytes:
    """Quantise the convolutions of an exported network.

    Args:
        model: A float32 ONNX model, as ``export_onnx`` makes it.
        tiles: Calibration tiles (N, 1, Z, Y, X) from training scans, see ``draw_calibration_tiles``. One at a time is
            held.

    Returns:
        The checked model, with float32 input and output; the same bytes for the same input.

    Raises:
        SettingsError: If there is no tile or one of another shape, if the means of normalisation are written out, or if
            there is no convolution between the first and the last.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    if any(node.op_type == "AveragePool" for node in graph.node):
        # OpenVINO 2026.4 passes int8 steps on to the poolings, and their means are far off.
        raise SettingsError('int8 needs means that are not written out; export with normalisation="native".')
    layers = quantisable_convolutions(graph)
    if not layers:
        raise SettingsError("this network has no convolution between its first and its last one; export it in fp32.")
    sources = sources_of(graph, layers)
    names = sorted({name for parts in sources.values() for name in parts})
    tensors = _QuantisedTensors(graph, sources, channel_maxima(proto, names, tiles))
    nodes = [node for original in graph.node for node in tensors.quantise(original)]
    replace_content(graph, _without_unread(nodes, graph), tensors.initialisers)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def quantisable_convolutions(graph: GraphProto) -> list[NodeProto]:
    """The convolutions that are not sensitive: neither the ends of the network nor, unless it is folded, fine skips."""
    images, last = {tensor.name for tensor in graph.input}, last_convolutions(graph)
    kept = last
    if any(node.op_type == "InstanceNormalization" for node in graph.node):
        kept = last | convolutions_before(graph, last) | fine_skip_makers(graph)
    return [
        node
        for node in graph.node
        if node.op_type in CONVOLUTIONS and node.input[0] not in images and node.output[0] not in kept
    ]


def convolutions_before(graph: GraphProto, outputs: frozenset[str]) -> frozenset[str]:
    """Outputs of the convolutions that the makers of ``outputs`` read, straight or through what is no convolution."""
    wanted = {name for node in graph.node if node.output[0] in outputs for name in node.input}
    found = set()
    for node in reversed(graph.node):
        if wanted.isdisjoint(node.output):
            continue
        if node.op_type in CONVOLUTIONS:
            found.add(node.output[0])
        else:
            wanted.update(node.input)
    return frozenset(found)


def fine_skip_makers(graph: GraphProto) -> frozenset[str]:
    """Outputs of the convolutions that end the two finest stages of an encoder.

    Such a convolution feeds a skip as well as the next stage, and no more than four convolutions lead up to it.
    """
    depths: dict[str, int] = {}  # the most convolutions on the way from the image to a tensor
    reached: dict[str, set[str]] = {}  # what reads a tensor, straight or through what is no convolution
    for node in graph.node:
        depth = max((depths.get(name, 0) for name in node.input), default=0)
        depths.update(dict.fromkeys(node.output, depth + (node.op_type in CONVOLUTIONS)))
    for node in reversed(graph.node):
        ends = node.op_type in CONVOLUTIONS or node.op_type == "Concat"
        found = {node.op_type} if ends else set().union(*(reached.get(name, set()) for name in node.output))
        for name in node.input:
            reached.setdefault(name, set()).update(found)
    return frozenset(
        node.output[0]
        for node in graph.node
        if node.op_type in CONVOLUTIONS
        and depths[node.output[0]] <= DEEPEST_FINE_SKIP
        and {"Conv", "Concat"} <= reached.get(node.output[0], set())
    )


def sources_of(graph: GraphProto, layers: Sequence[NodeProto]) -> Mapping[str, tuple[str, ...]]:
    """The tensors of which each layer's input is made: itself, or what was concatenated; by the layer's output."""
    parts = {node.output[0]: tuple(node.input) for node in graph.node if node.op_type == "Concat"}
    return {layer.output[0]: parts.get(layer.input[0], (layer.input[0],)) for layer in layers}


def channel_maxima(
    model: onnx.ModelProto, names: Sequence[str], tiles: Iterable[NDArray[np.float32]]
) -> Mapping[str, NDArray[np.float32]]:
    """Largest |x| of every channel (C,) of the tensors named, over all tiles.

    The graph reduces its own tensors, so that no more than one tile's are ever held.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3, 4]), "over_voxels"))
    del graph.output[:]
    for name in names:
        for reduction in ("ReduceMax", "ReduceMin"):
            reduced = f"{name}.{reduction}"
            graph.node.append(helper.make_node(reduction, [name, "over_voxels"], [reduced], reduced, keepdims=0))
            graph.output.append(helper.make_tensor_value_info(reduced, TensorProto.FLOAT, [None]))
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    maxima: list[NDArray[np.float32]] = []
    for tile in tiles:
        if list(tile.shape[1:]) != image.shape[1:]:
            raise SettingsError(f"a calibration tile has shape {tile.shape}; (N, {str(image.shape[1:])[1:-1]}) fits.")
        found = [np.abs(values) for values in session.run(None, {image.name: tile})]
        maxima = [np.maximum(*pair) for pair in zip(maxima or found, found, strict=True)]
    if not maxima:
        raise SettingsError("quantisation needs at least one calibration tile; none was given.")
    return {name: np.maximum(high, low) for name, high, low in zip(names, maxima[::2], maxima[1::2], strict=True)}


def draw_calibration_tiles(
    hu: NDArray[np.int16], scaling: HounsfieldScaling, tile_shape: Shape, *, count: int, seed: int
) -> list[NDArray[np.float32]]:
    """Cut tiles from a training scan, as the runtime hands them to the network.

    Args:
        hu: The scan (Z, Y, X) on the model's grid.
        scaling: The model's.
        tile_shape: (z, y, x); where the scan is smaller its border voxel is repeated.
        count: Number of tiles. The first, third, … have a lung voxel at their centre, as far as the scan's border
            lets them; the others, and all where there is no lung, lie anywhere.
        seed: The same seed gives the same tiles.

    Returns:
        Tiles (1, 1, z, y, x).
    """
    random = np.random.default_rng(seed)
    lungs = np.argwhere(enclosed_air(hu) & (hu < LUNG_BELOW_HU))
    tiles = []
    for index in range(count):
        near_lung = index % 2 == 0 and len(lungs) > 0
        centre = lungs[random.integers(len(lungs))] if near_lung else random.integers(hu.shape)
        tiles.append(_cut_tile(hu, centre, scaling, tile_shape))
    return tiles


def _cut_tile(
    hu: NDArray[np.int16], centre: NDArray[np.int64], scaling: HounsfieldScaling, tile_shape: Shape
) -> NDArray[np.float32]:
    room = np.maximum(np.subtract(hu.shape, tile_shape), 0)
    z, y, x = (int(n) for n in np.clip(centre - np.floor_divide(tile_shape, 2), 0, room))
    cut = clip_and_scale_hounsfield(hu[Tile((z, y, x), tile_shape).slices], scaling)
    padding = [(0, full - n) for n, full in zip(cut.shape, tile_shape, strict=True)]
    return np.ascontiguousarray(np.pad(cut, padding, mode="edge"))[None, None]


class _QuantisedTensors:
    """Puts quantise and dequantise nodes around the layers."""

    def __init__(
        self,
        graph: GraphProto,
        sources: Mapping[str, tuple[str, ...]],
        maxima: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self.initialisers = {tensor.name: tensor for tensor in graph.initializer}
        self._sources = sources
        self._ranges = {name: _usable_range(values) for name, values in maxima.items()}
        self._made: set[str] = set()
        self._add("int8.scale", np.array(1 / LARGEST, np.float32))
        self._add("int8.zero", np.array(0, np.int8))

    def quantise(self, node: NodeProto) -> Iterator[NodeProto]:
        """The node, after what brings its input and weights to int8 and back, if it is one of the layers."""
        quantised = NodeProto()
        quantised.CopyFrom(node)
        if node.output[0] in self._sources:
            yield from self._input(node)
            yield self._weights(node)
            quantised.input[0], quantised.input[1] = f"{node.input[0]}.rounded", f"{node.input[1]}.rounded"
        yield quantised

    def _input(self, layer: NodeProto) -> Iterator[NodeProto]:
        rounded = f"{layer.input[0]}.rounded"
        if rounded in self._made:
            return
        self._made.add(rounded)
        sources = self._sources[layer.output[0]]
        for source in sources:
            yield from self._source(source)
        whole = f"{sources[0]}.int8"
        if len(sources) > 1:
            # Joined as int8: OpenVINO 2026.4 gives wrong numbers where it has to move a quantisation past a Concat.
            whole = f"{layer.input[0]}.int8"
            yield helper.make_node("Concat", [f"{source}.int8" for source in sources], [whole], whole, axis=1)
        yield helper.make_node("DequantizeLinear", [whole, "int8.scale", "int8.zero"], [rounded], rounded)

    def _source(self, name: str) -> Iterator[NodeProto]:
        int8 = f"{name}.int8"
        if int8 in self._made:
            return
        self._made.add(int8)
        self._add(f"{name}.share", (1 / self._ranges[name]).reshape(1, -1, 1, 1, 1))
        yield helper.make_node("Mul", [name, f"{name}.share"], [f"{name}.shared"], f"{name}.shared")
        yield helper.make_node("QuantizeLinear", [f"{name}.shared", "int8.scale", "int8.zero"], [int8], int8)

    def _weights(self, layer: NodeProto) -> NodeProto:
        """Dequantises the layer's weights, scaled by what its input was divided by; one scale an output channel."""
        name = layer.input[1]
        input_axis, output_axis = (1, 0) if layer.op_type == "Conv" else (0, 1)
        ranges = np.concatenate([self._ranges[source] for source in self._sources[layer.output[0]]])
        weights = np.moveaxis(numpy_helper.to_array(self.initialisers[name]), input_axis, -1) * ranges
        weights = np.moveaxis(weights, -1, input_axis)
        largest = np.abs(weights).max(axis=(input_axis, 2, 3, 4))
        scale = np.where(largest > 0, largest, np.float32(1)) / np.float32(LARGEST)
        steps = weights / np.expand_dims(scale, tuple(axis for axis in range(5) if axis != output_axis))
        self._add(f"{name}.int8", np.rint(steps).astype(np.int8))
        self._add(f"{name}.scale", scale)
        self._add(f"{name}.zero", np.zeros(scale.shape, np.int8))
        parts = [f"{name}.{part}" for part in ("int8", "scale", "zero")]
        rounded = f"{name}.rounded"
        return helper.make_node("DequantizeLinear", parts, [rounded], rounded, axis=output_axis)

    def _add(self, name: str, values: NDArray[np.generic]) -> None:
        self.initialisers[name] = numpy_helper.from_array(values, name)


def _usable_range(maxima: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest values, none of them zero or hardly more."""
    floor = maxima.max() * SMALLEST_SHARE or 1.0
    return np.maximum(maxima, np.float32(floor))


def _without_unread(nodes: Sequence[NodeProto], graph: GraphProto) -> list[NodeProto]:
    """The nodes but for concatenations whose only readers were quantised."""
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    return [node for node in nodes if node.output[0] in read]
