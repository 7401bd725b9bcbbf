"""A training run → a bundle, or nothing: export, prove parity, measure the held-out cases, write."""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covidseg_export.held_out import measure_held_out
from covidseg_export.model_card import INTENDED_USE, write_model_card
from covidseg_export.parity import Parity, ParityScan, check_parity, require_parity
from covidseg_export.to_onnx import OPSET, export_onnx
from covidseg_export.write_bundle import json_bytes, write_bundle_folder
from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.engines import open_engine
from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from covidseg_runtime.engines.openvino_engine import OpenVinoEngine
from covidseg_runtime.errors import BundleError
from covidseg_runtime.resampling import GridPair, to_model_grid
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.tiling import TilePlan
from covidseg_runtime.volume import MODEL_ORIENTATION, to_orientation
from covidseg_runtime.volume_files import read_volume
from covidseg_train.checkpoint import Checkpoint, load_network
from covidseg_train.config import ExperimentConfig
from covidseg_train.datasets.catalog import get_dataset
from covidseg_train.datasets.dataset import find_case
from covidseg_train.fit import BEST
from covidseg_train.torch_engine import TorchEngine
from covidseg_train.unet import SegmentationNetwork, count_parameters

MODEL_FILE = "model.onnx"
LABELS = {"0": "background", "1": "left lung", "2": "right lung", "3": "infection"}
CLASSES = ("background", "lung", "infection")
VERSION = "0.1.0"


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        bundle_folder: The bundle.
        parity: Comparison with torch, by engine.
        description: Content of bundle.json.
    """

    bundle_folder: Path
    parity: Mapping[str, Parity]
    description: Mapping[str, Any]


def export_run(run_folder: Path, bundle_folder: Path, *, parity_scan: Path | None = None) -> ExportResult:
    """Export the best checkpoint of a run.

    Args:
        run_folder: Folder that ``covidseg train`` wrote.
        bundle_folder: Where the bundle shall lie.
        parity_scan: Real CT on which engines are compared with torch; the run's first case if None.

    Raises:
        BundleError: If the run has no checkpoint, or an engine differs from torch; nothing is written then.
        VolumeError: If the scan or a held-out case is missing or unsuitable.
    """
    if not (run_folder / BEST).is_file():
        raise BundleError(f"{run_folder} holds no {BEST}; give the folder of a finished `covidseg train`.")
    network, checkpoint = load_network(run_folder / BEST)
    config = checkpoint.config
    scan_path = parity_scan or default_parity_scan(config)
    model = export_onnx(network, config.tiles.shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        path.write_bytes(model)
        parity = compare_engines(network, path, read_parity_scan(scan_path, config))
        require_parity(parity)
        description = describe(checkpoint, network, model)
        description["parity"] = {"scan": scan_path.name, "engines": {k: p.to_dict() for k, p in parity.items()}}
        description["metrics"] = {"held_out": held_out_metrics(Path(folder), description, config)}
    files = {
        MODEL_FILE: model,
        "MODEL_CARD.md": write_model_card(description).encode(),
        "bundle.json": json_bytes(description),
    }
    write_bundle_folder(bundle_folder, files)
    return ExportResult(bundle_folder, parity, description)


def default_parity_scan(config: ExperimentConfig) -> Path:
    """CT of the first held-out case, or of the first training case where none is held out."""
    name = (*config.data.test, *config.data.train)[0]
    return find_case(get_dataset(config.data.dataset), Path(config.data.root), name).ct


def read_parity_scan(path: Path, config: ExperimentConfig) -> ParityScan:
    """Bring a real scan to the model's grid, as the runtime does."""
    ct = to_orientation(read_volume(path), MODEL_ORIENTATION)
    grids = GridPair.for_spacing(ct.shape, ct.spacing_mm, config.grid.spacing_mm)
    hu = np.rint(to_model_grid(ct.voxels, grids)).astype(np.int16)
    return ParityScan(hu, config.grid.scaling, TilePlan(tile_shape=config.tiles.shape, step=config.tiles.step))


def compare_engines(network: SegmentationNetwork, model_path: Path, scan: ParityScan) -> dict[str, Parity]:
    """Compare OpenVINO f32 and ONNX Runtime with torch fp32."""
    reference = TorchEngine(network, device=torch.device("cpu"))
    candidates: dict[str, Engine] = {
        "openvino": OpenVinoEngine(model_path, precision="f32"),
        "onnxruntime": OnnxRuntimeEngine(model_path),
    }
    try:
        return check_parity(reference, candidates, scan)
    finally:
        for engine in candidates.values():
            engine.close()


def held_out_metrics(folder: Path, description: dict[str, Any], config: ExperimentConfig) -> list[dict[str, object]]:
    """Measure the exported model, as a bundle in ``folder``, on the held-out cases."""
    if not config.data.test:
        return []
    draft = folder / "bundle.json"
    draft.write_bytes(json_bytes({**description, "metrics": {}}))
    bundle = load_bundle(folder)
    segmenter = Segmenter(bundle, open_engine(bundle))
    return [result.to_dict() for result in measure_held_out(segmenter, config)]


def describe(checkpoint: Checkpoint, network: SegmentationNetwork, model: bytes) -> dict[str, Any]:
    """Everything bundle.json says, but for parity and metrics."""
    config = checkpoint.config
    return {
        "schema_version": 1,
        "name": config.name,
        "version": VERSION,
        "labels": LABELS,
        "classes": list(CLASSES),
        "preprocessing": {
            "orientation": MODEL_ORIENTATION,
            "spacing_mm": list(config.grid.spacing_mm),
            "scaling": asdict(config.grid.scaling),
        },
        "tile_plan": {"tile_shape": list(config.tiles.shape), "step": config.tiles.step},
        "network": {
            "architecture": type(network).__name__,
            "parameters": count_parameters(network),
            "widths": list(config.network.widths),
            "strides": [list(stride) for stride in config.network.strides],
            "opset": OPSET,
        },
        "training": describe_training(checkpoint),
        "intended_use": INTENDED_USE,
        "licence": get_dataset(checkpoint.config.data.dataset).licence,
        "files": [
            {
                "role": "model",
                "name": MODEL_FILE,
                "sha256": hashlib.sha256(model).hexdigest(),
                "precision": "fp32",
            }
        ],
    }


def describe_training(checkpoint: Checkpoint) -> dict[str, Any]:
    """Data, recipe and seed of the training."""
    config = checkpoint.config
    dataset = get_dataset(config.data.dataset)
    return {
        "experiment": config.name,
        "dataset": dataset.title,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "train": list(config.data.train),
        "validation": list(config.data.validation),
        "test": list(config.data.test),
        "strategy": config.transfer.strategy,
        "seed": config.run.seed,
        "steps": checkpoint.progress.step,
        "batch_size": config.patches.batch_size,
        "patch_shape": list(config.patches.shape),
        "optimiser": config.optimiser.name,
        "minutes": round(checkpoint.progress.seconds / 60, 1),
        "validation_dsc": checkpoint.progress.best_score,
    }
