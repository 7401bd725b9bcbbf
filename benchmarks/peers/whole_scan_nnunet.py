"""nnU-Net v2's predictor, holding the bundle's network, as a contestant of whole_scan.py.

python whole_scan_nnunet.py JOB

Needs nnunetv2 and not covidseg. The job's model folder holds network.json (what bundle.json says of network, grid and
window), weights.pt, and probe.npz: a tile and what our network answers. Mirroring is off; reading, resampling,
sliding window (overlap 0.5) and export are nnU-Net's own, in one process, as its workers take longer to start than
they save on one scan.
"""

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunet_training import CONFIGURATION, make_plans, take_weights_over
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from whole_scan_job import Clock, leave_outcome, read_job

STEP = 0.5
# nnU-Net's network answers as ours does, up to the order of sums.
LARGEST_LOGIT_DIFFERENCE = 1e-2
_RESAMPLING = {
    "data": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "seg": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    "probabilities": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}


def plan_prediction(described: Mapping[str, Any]) -> dict[str, Any]:
    """Plans of the bundle's network, tile and window; reading and resampling as nnU-Net plans them for CT."""
    plans, scaling = make_plans(described), described["scaling"]
    configuration = plans["configurations"][CONFIGURATION]
    for kind, keywords in _RESAMPLING.items():
        configuration[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{kind}_kwargs"] = keywords
    if described["network"]["normalisation"] == "batch":
        # A bundle has its batch normalisations folded into the convolutions; so does the peer.
        configuration["architecture"]["arch_kwargs"].update(norm_op=None, norm_op_kwargs=None)
    window = {
        "percentile_00_5": scaling["lower_hu"],
        "percentile_99_5": scaling["upper_hu"],
        "mean": scaling["mean_hu"],
        "std": scaling["sd_hu"],
    }
    return {**plans, "image_reader_writer": "SimpleITKIO", "foreground_intensity_properties_per_channel": {"0": window}}


def make_predictor(folder: Path, clock: Clock) -> nnUNetPredictor:
    """A predictor on the CPU whose network has the bundle's weights."""
    described = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    labels = {name: value for value, name in enumerate(described["classes"])}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    plans = PlansManager(plan_prediction(described))
    configuration = plans.get_configuration(CONFIGURATION)
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        len(labels),
        deep_supervision=False,
    )
    take_weights_over(network, torch.load(folder / "weights.pt"))
    network.forward = clock.network(network.forward)
    predictor = nnUNetPredictor(tile_step_size=STEP, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    weights = [network.state_dict()]
    predictor.manual_initialization(network, plans, configuration, weights, dataset, "nnUNetTrainer", None)
    return predictor


def check_network(predictor: nnUNetPredictor, folder: Path) -> None:
    """Refuse to time another network than ours."""
    with np.load(folder / "probe.npz") as probe, torch.inference_mode():
        answer = predictor.network(torch.from_numpy(probe["tile"])).numpy()
        difference = float(np.abs(answer - probe["logits"]).max())
    if difference > LARGEST_LOGIT_DIFFERENCE:
        raise SystemExit(f"nnU-Net's network is not ours: its logits differ by {difference}")


def main() -> None:
    """Build the predictor and do the job."""
    job, clock = read_job(), Clock()
    sys.stdout = sys.stderr
    torch.set_num_threads(job.threads)
    predictor = make_predictor(job.model, clock)

    def segment() -> dict[str, Any]:
        truncated = str(job.labels).removesuffix(".nii.gz")
        predictor.predict_from_files_sequential([[str(job.scan)]], [truncated])
        used = {"engine": "torch", "precision": "f32", "torch": torch.__version__, "nnunetv2": version("nnunetv2")}
        return {**used, "threads": torch.get_num_threads()}

    leave_outcome(job, clock, segment)
    check_network(predictor, job.model)


if __name__ == "__main__":
    main()
