"""How much arithmetic is a tile, and how much can this machine do?

    python benchmarks/whole_scan_arithmetic.py MODEL.onnx [--threads 2]

Prints JSON. A tile's work is that of its convolutions, two operations a multiplication; the machine's peak is what a
product of large matrices reaches, in numpy and in OpenVINO, in each precision. whole_scan.py runs it.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
from openvino import opset13 as operators

SIZE, CHAIN = 2048, 3
REPEATS = 8
_CHAINED_GFLOP = CHAIN * 2 * SIZE**3 / 1e9
_RANGE = 4.0


def count_gflop(model_path: Path) -> float:
    """Operations of the convolutions for one tile, in 10⁹; everything else a network does is left out."""
    model = onnx.load(model_path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    operations = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        # A kernel is (out, in, …) of a convolution and (in, out, …) of a transposed one; it is laid on every voxel of
        # the output, or of the input.
        kernel = shapes[node.input[1]]
        voxels = shapes[node.output[0] if node.op_type == "Conv" else node.input[0]][2:]
        operations += 2 * math.prod(kernel) * math.prod(voxels)
    return operations / 1e9


def time_numpy() -> float:
    """GFLOP/s of numpy's float32 product."""
    left, right = np.random.default_rng(0).standard_normal((2, SIZE, SIZE), np.float32)
    return _CHAINED_GFLOP / CHAIN / _shortest(lambda: left @ right)


def time_openvino(precision: str, threads: int) -> tuple[float, str]:
    """GFLOP/s of a chain of OpenVINO's products, and the precision it says it multiplied in."""
    model, hint = _product_chain(quantised=precision == "int8"), "f32" if precision == "f32" else "bf16"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    matrix = np.random.default_rng(1).standard_normal((SIZE, SIZE), np.float32)
    seconds = _shortest(lambda: request.infer([matrix]))
    return _CHAINED_GFLOP / seconds, _multiplied_in(compiled)


def _product_chain(*, quantised: bool) -> openvino.Model:
    generator = np.random.default_rng(2)
    tiles = operators.parameter([SIZE, SIZE], np.float32)
    current: Any = tiles
    for _ in range(CHAIN):
        if quantised:
            low, high = (operators.constant(np.float32(bound)) for bound in (-_RANGE, _RANGE))
            current = operators.fake_quantize(current, low, high, low, high, 256)
            stored = operators.constant(generator.integers(-127, 128, (SIZE, SIZE), np.int8))
            scale = operators.constant(np.float32(_RANGE / 127 / math.sqrt(SIZE)))
            weights = operators.multiply(operators.convert(stored, np.float32), scale)
        else:
            weights = operators.constant(generator.standard_normal((SIZE, SIZE), np.float32) / math.sqrt(SIZE))
        current = operators.matmul(current, weights, transpose_a=False, transpose_b=True)
    return openvino.Model([current], [tiles])


def _multiplied_in(compiled: openvino.CompiledModel) -> str:
    found = {
        str(node.get_rt_info()["runtimePrecision"].astype(str))
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) in ("MatMul", "FullyConnected")
    }
    return ", ".join(sorted(found))


def _shortest(work: Callable[[], object]) -> float:
    """Seconds of the fastest repeat: a peak is wanted, and the first one warms up."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    peaks: dict[str, Any] = {"numpy f32": {"gflop_per_s": round(time_numpy(), 1), "multiplied_in": "f32"}}
    for precision in ("f32", "bf16", "int8"):
        speed, multiplied_in = time_openvino(precision, arguments.threads)
        peaks[f"openvino {precision}"] = {"gflop_per_s": round(speed, 1), "multiplied_in": multiplied_in}
    print(json.dumps({"gflop_per_tile": round(count_gflop(arguments.model), 2), "peaks": peaks}))


if __name__ == "__main__":
    main()
