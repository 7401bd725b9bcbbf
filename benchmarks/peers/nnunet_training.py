"""nnU-Net v2 as a contestant of training_speed.py: its own trainer, data loader, augmentation, loss and optimiser.

python nnunet_training.py FOLDER DEVICE

Needs nnunetv2 and not covidseg. FOLDER holds experiment.json (what covidseg trains), prepared/<case>.npz and
weights.pt. They become plans, a preprocessed data set and the first weights, so that both train the same network from
the same start on the same voxels.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import torch
from turns import claim_stdout, serve_turns

DATASET = "Dataset001_Contest"
CONFIGURATION = "3d_fullres"
LABELS = {
    "lung_and_lesion": {"background": 0, "lung": 1, "lesion": 2},
    "lesion": {"background": 0, "lesion": 1},
}
# Names of covidseg's parameters → nnU-Net's.
NAMES = (
    (r"encoder\.stages\.(\d+)\.(\d+)\.0\.", r"encoder.stages.\1.0.convs.\2.conv."),
    (r"encoder\.stages\.(\d+)\.(\d+)\.1\.", r"encoder.stages.\1.0.convs.\2.norm."),
    (r"decoder\.ups\.", r"decoder.transpconvs."),
    (r"decoder\.levels\.(\d+)\.(\d+)\.0\.", r"decoder.stages.\1.convs.\2.conv."),
    (r"decoder\.levels\.(\d+)\.(\d+)\.1\.", r"decoder.stages.\1.convs.\2.norm."),
)


def make_plans(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """Plans of the experiment's network, patch and batch; everything else as nnU-Net plans it for CT."""
    network, patches = experiment["network"], experiment["patches"]
    stages = len(network["widths"])
    configuration = {
        "data_identifier": f"nnUNetPlans_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": patches["batch_size"],
        "patch_size": patches["shape"],
        "spacing": experiment["grid"]["spacing_mm"],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": network["widths"],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [network["finest_kernel"], *([[3, 3, 3]] * (stages - 1))],
                "strides": [[1, 1, 1], *network["strides"]],
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {CONFIGURATION: configuration},
        "continue_training": False,
    }


def write_dataset(prepared: Path, base: Path, plans: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
    """Store the prepared cases as nnU-Net's own preprocessing stores its own."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    configuration = plans["configurations"][CONFIGURATION]
    folder = base / configuration["data_identifier"]
    folder.mkdir(parents=True)
    foreground = [value for value in dataset["labels"].values() if value > 0]
    for path in sorted(prepared.glob("*.npz")):
        with np.load(path) as stored:
            image, classes = stored["image"][None].astype(np.float32), stored["classes"][None].astype(np.int16)
        places = DefaultPreprocessor._sample_foreground_locations(classes, foreground)
        (blocks, chunks), (seg_blocks, seg_chunks) = (
            comp_blosc2_params(array.shape, tuple(configuration["patch_size"]), array.itemsize)
            for array in (image, classes)
        )
        nnUNetDatasetBlosc2.save_case(
            image,
            classes,
            {"class_locations": places},
            str(folder / path.stem),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=seg_chunks,
            blocks_seg=seg_blocks,
        )
    (base / "dataset_fingerprint.json").write_text("{}", encoding="utf-8")


def take_weights_over(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give nnU-Net's network the weights of covidseg's; a name or shape without its counterpart is an error."""
    own = {name.removeprefix("_orig_mod."): value for name, value in network.named_parameters()}
    levels = sum(re.fullmatch(r"decoder\.seg_layers\.\d+\.weight", name) is not None for name in own)
    with torch.no_grad():
        for name, value in weights.items():
            for pattern, replacement in NAMES:
                name = re.sub(f"^{pattern}", replacement, name)
            # Heads lie finest first here and finest last there.
            name = re.sub(r"^heads\.(\d+)", lambda found: f"decoder.seg_layers.{levels - 1 - int(found[1])}", name)
            if own[name].shape != value.shape:
                raise SystemExit(f"{name} is {tuple(own[name].shape)} and was to be {tuple(value.shape)}")
            own[name].copy_(value)


def main() -> None:
    """Build the trainer as `nnUNetv2_train` does and take turns."""
    answers = claim_stdout()
    folder, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    # nnU-Net reads its folders from the environment when it is imported.
    os.environ.update(nnUNet_preprocessed=str(folder / "nnunet"), nnUNet_results=str(folder / "results"))
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    experiment = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    plans = make_plans(experiment)
    dataset = {"channel_names": {"0": "CT"}, "labels": LABELS[experiment["data"]["target"]], "file_ending": ".nii.gz"}
    write_dataset(folder / "prepared", folder / "nnunet" / DATASET, plans, dataset)
    torch.manual_seed(experiment["run"]["seed"])
    if device.type == "cuda":  # as nnunetv2.run.run_training does
        torch.backends.cudnn.benchmark = True
    trainer = nnUNetTrainer(plans, CONFIGURATION, "all", dataset, device)
    trainer.on_train_start()
    take_weights_over(trainer.network, torch.load(folder / "weights.pt"))
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()

    def take_steps(count: int) -> list[SupportsFloat]:
        return [trainer.train_step(next(trainer.dataloader_train))["loss"] for _ in range(count)]

    description = {
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "precision": "fp16" if trainer.grad_scaler is not None else "fp32",
        "compilation": "compile" if trainer._do_i_compile() else "off",
        "workers": get_allowed_n_proc_DA(),
        "nnunetv2": version("nnunetv2"),
    }
    serve_turns(answers, description, take_steps, device)


if __name__ == "__main__":
    main()
