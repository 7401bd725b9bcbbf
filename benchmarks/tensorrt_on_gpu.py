"""Does TensorRT say what ONNX Runtime says, and how fast? For a machine with an NVIDIA GPU.

    python benchmarks/tensorrt_on_gpu.py SCAN [--truth MASK] [--model BUNDLE] [--cuda-device 0]

Needs `pip install --extra-index-url https://pypi.nvidia.com 'covidseg[tensorrt,ort]'`, neither torch nor onnx. Builds a
plan of each graph of the bundle, segments the scan with each and with ONNX Runtime on the CPU in fp32, and times tiles
with and without CUDA graphs, and the whole scan. Ends with 1 if a result is outside its limits; the figures are kept
all the same. Expected: fp32 within 1e-3 in every logit and 1e-5 of all labels, fp16 within 0.001 in DSC.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from record import keep_result

from covidseg_export.parity import Candidate, ParityCheck, ParityLimits, ParityScan
from covidseg_export.to_tensorrt import BuilderOptions, build_plan
from covidseg_runtime import Segmenter, find_bundle, load_bundle, read_label_map, read_volume
from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from covidseg_runtime.engines.plan_cache import FOLDER_VARIABLE
from covidseg_runtime.engines.tensorrt_engine import TensorRtEngine, gpu_identity, import_tensorrt
from covidseg_runtime.errors import CovidsegError
from covidseg_runtime.evaluation import align_truth
from covidseg_runtime.measures import INFECTION

WARM_UP, RUNS = 5, 20
PRECISIONS = ("fp32", "fp16", "int8")


def measure_graph(
    model: Path, check: ParityCheck, scan: ParityScan, bundle: ModelBundle, device: int
) -> dict[str, Any]:
    """Build, compare and time one ONNX file."""
    seconds_to_build = seconds_of(lambda: build_plan(model, BuilderOptions(), cuda_device=device))
    engine = TensorRtEngine(model, cuda_device=device)
    limits = ParityLimits()
    parity = check.compare(Candidate(model.name, engine))
    seconds = seconds_of(lambda: Segmenter(bundle, engine).segment(scan.volume))
    with_graphs = milliseconds_per_tile(engine, bundle)
    engine.close()
    engine = TensorRtEngine(model, cuda_device=device, cuda_graphs=False)
    without_graphs = milliseconds_per_tile(engine, bundle)
    engine.close()
    return {
        "file": model.name,
        "seconds_to_build": round(seconds_to_build, 1),
        "parity_with_onnxruntime_cpu_fp32": parity.to_dict(limits),
        "outside_the_limits": parity.faults(limits),
        "ms_per_tile_with_cuda_graphs": with_graphs,
        "ms_per_tile_without_cuda_graphs": without_graphs,
        "seconds_for_the_scan": round(seconds, 2),
    }


def milliseconds_per_tile(engine: TensorRtEngine, bundle: ModelBundle) -> dict[str, float]:
    """Median over runs, copies to and from the GPU included, by batch size."""
    found = {}
    for batch in sorted({1, engine.batch}):
        tiles = np.random.default_rng(0).normal(size=(batch, 1, *bundle.tile_plan.tile_shape)).astype(np.float32)
        for _ in range(WARM_UP):
            engine.predict(tiles)
        runs = [seconds_of(partial(engine.predict, tiles)) for _ in range(RUNS)]
        found[f"batch {batch}"] = round(1000 * statistics.median(runs) / batch, 2)
    return found


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds; every call here returns only when the GPU is done."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_scan(path: Path, truth: Path | None) -> ParityScan:
    """The CT, and the infection marked on it if there is a mask."""
    volume = read_volume(path)
    mask = None if truth is None else align_truth(volume, read_label_map(truth)) == INFECTION
    return ParityScan(path.name, volume, mask)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything of one bundle on one GPU."""
    device = arguments.cuda_device
    tensorrt, gpu = import_tensorrt().identity, gpu_identity(device)
    bundle = load_bundle(find_bundle(arguments.model))
    scan = read_scan(arguments.scan, arguments.truth)
    files = {file.precision: bundle.folder / file.name for file in bundle.files if file.role == "model"}
    check = ParityCheck(bundle, OnnxRuntimeEngine(bundle.model_path("fp32")), scan)
    return {
        "gpu": {"name": gpu.name, "compute_capability": gpu.compute_capability, "driver_for_cuda": gpu.driver},
        "tensorrt": str(tensorrt),
        "bundle": f"{bundle.name} {bundle.version}",
        "scan": scan.name,
        "graphs": [measure_graph(files[name], check, scan, bundle, device) for name in PRECISIONS if name in files],
        "not_in_the_bundle": [name for name in PRECISIONS if name not in files],
    }


def main() -> None:
    """Measure and keep the result, or say in a sentence why that cannot be done here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--cuda-device", type=int, default=0)
    arguments = parser.parse_args()
    # An empty plan cache: a build that is not one would take no time.
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER_VARIABLE] = folder
        try:
            result = measure(arguments)
        except CovidsegError as error:
            raise SystemExit(f"Not measured: {error}") from None
    keep_result("tensorrt_on_gpu", result)
    outside = [f"{graph['file']}: {fault}" for graph in result["graphs"] for fault in graph["outside_the_limits"]]
    if outside:
        raise SystemExit("; ".join(outside))


if __name__ == "__main__":
    main()
