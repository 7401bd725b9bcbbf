"""Fine-tuning from a bundle: its weights as a file that a training takes over, and the experiment that does so."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from covidseg_export.source import load_bundle_network
from covidseg_runtime.bundle import ModelBundle
from covidseg_train.checkpoint import save_weights
from covidseg_train.splits import task2_split
from covidseg_train.unet import ConvBlock

TARGET = "covid-19-ct-seg"
_TARGET_OF_CLASSES = {2: "lesion", 3: "lung_and_lesion"}
_STRATEGY_OF = {"UNet3d": "continual", "MultiTaskUNet": "continual", "HybridEncoderUNet": "hybrid"}


def write_weights(bundle: ModelBundle, path: Path) -> None:
    """Write the weights of a bundle as a file for ``transfer.checkpoint``.

    A bundle holds the finest head alone: ``continual``, and ``hybrid`` from a hybrid network, need
    ``network.supervised_levels = 1``. Batch normalisations need ``run.still_statistics_after = 0``;
    ``unfold_batch_normalisations`` says why.

    Raises:
        BundleError: If the bundle does not describe its network, or holds an ensemble.
        OutputError: If the file cannot be written.
    """
    network = load_bundle_network(bundle)
    unfold_batch_normalisations(network)
    origin = {"bundle": f"{bundle.name} {bundle.version}", "training": dict(bundle.card.get("training", {}))}
    save_weights(path, network.state_dict(), origin)


def unfold_batch_normalisations(network: nn.Module) -> None:
    """Give convolutions that swallowed their batch normalisation a new one, in place; every answer stays the same.

    The new one has the convolution's bias as its shift, scale 1, and running statistics that change nothing. The
    true statistics are lost, so that those of a batch must not take their place: the network is what it was only
    while it normalises with its running ones.
    """
    for block in network.modules():
        if not isinstance(block, ConvBlock):
            continue
        convolution = block[0]
        if isinstance(convolution, nn.Conv3d) and convolution.bias is not None and isinstance(block[1], nn.Identity):
            norm = nn.BatchNorm3d(convolution.out_channels)
            with torch.no_grad():
                norm.bias.copy_(convolution.bias)
                norm.get_buffer("running_var").fill_(1.0 - norm.eps)
            convolution.bias, block[1] = None, norm.eval()


def fine_tuning_lines(description: Mapping[str, Any]) -> list[str]:
    """The section of the model card that says how to train on from the bundle.

    Args:
        description: Content of bundle.json.
    """
    lines = ["## Fine-tuning on COVID-19-CT-Seg as published", ""]
    architecture, classes = description["network"]["architecture"], len(description["classes"])
    if architecture not in _STRATEGY_OF or classes not in _TARGET_OF_CLASSES:
        return [*lines, f"Not possible from this bundle: no training takes a {architecture} of {classes} classes over."]
    return [
        *lines,
        "```",
        f"covidseg data fetch {TARGET}                    # CC BY-NC-SA 4.0, into data/{TARGET}",
        "covidseg export BUNDLE --weights weights.safetensors   # the weights of this bundle",
        "covidseg train fine-tune.toml -o runs/fine-tune",
        "covidseg export runs/fine-tune -o NEW_BUNDLE",
        "```",
        "",
        "`fine-tune.toml`, with the same patients held out. Its length and learning rate were not tried on that data:",
        "",
        "```toml",
        *fine_tuning_experiment(description),
        "```",
        *_normalisation_lines(description),
    ]


def _normalisation_lines(description: Mapping[str, Any]) -> list[str]:
    if description["network"].get("normalisation") != "batch":
        return []
    return [
        "",
        "The graph holds its batch normalisations inside its convolutions, without the statistics they had. "
        "`still_statistics_after = 0` trains their scale and shift and never lets a batch's own statistics in; "
        "without it the network would no longer start as what it is here.",
    ]


def fine_tuning_experiment(description: Mapping[str, Any]) -> list[str]:
    """The lines of an experiment (TOML) that fits the bundle's network, grid and tiles.

    Args:
        description: Content of bundle.json, of a network that is no ensemble.
    """
    training, network = description["training"], description["network"]
    grid, tiles = description["preprocessing"], description["tile_plan"]
    scaling = ", ".join(f"{name} = {value}" for name, value in grid["scaling"].items())
    still = ["still_statistics_after = 0"] if network.get("normalisation") == "batch" else []
    return [
        'name = "fine-tune"',
        "[data]",
        f'dataset = "{TARGET}"',
        f'root = "data/{TARGET}"',
        *_case_lines(training),
        f'target = "{_TARGET_OF_CLASSES[len(description["classes"])]}"',
        "[grid]",
        f"spacing_mm = {json.dumps(grid['spacing_mm'])}",
        f"scaling = {{ {scaling} }}",
        "[network]",
        f"classes = {len(description['classes'])}",
        f"widths = {json.dumps(network['widths'])}",
        f"strides = {json.dumps(network['strides'])}",
        f"finest_kernel = {json.dumps(network.get('finest_kernel', [3, 3, 3]))}",
        f"normalisation = {json.dumps(network.get('normalisation', 'instance'))}",
        "supervised_levels = 1 # a bundle holds the finest head alone",
        "[patches]",
        f"shape = {json.dumps(training['patch_shape'])}",
        f"batch_size = {training['batch_size']}",
        "[optimiser]",
        'name = "adamw"',
        "learning_rate = 0.0003",
        "weight_decay = 0.01",
        "warmup_steps = 50",
        "ema_decay = 0.99",
        "[run]",
        "epochs = 20",
        "steps_per_epoch = 50",
        *still,
        "[tiles]",
        f"shape = {json.dumps(tiles['tile_shape'])}",
        f"step = {tiles['step']}",
        f"importance_sigma = {tiles['importance_sigma']}",
        f"average = {json.dumps(tiles['average'])}",
        "[transfer]",
        f"strategy = {json.dumps(_STRATEGY_OF[network['architecture']])}",
        *([f"fusion = {json.dumps(network['fusion'])}"] if "fusion" in network else []),
        'checkpoint = "weights.safetensors"',
    ]


def _case_lines(training: Mapping[str, Any]) -> list[str]:
    """The bundle's own parts as far as the published set has their cases; a held-out patient stays held out."""
    published = task2_split("msd-lung-tumour").test  # all 20 cases
    validation, test = (_published_names(training[part], published) for part in ("validation", "test"))
    train = _published_names(training["train"], published)
    train = train or [name for name in published if name not in (*validation, *test)]
    parts = {"train": train, "validation": validation, "test": test}
    return [f"{part} = {json.dumps(names)}" for part, names in parts.items() if names]


def _published_names(names: Sequence[str], published: Sequence[str]) -> list[str]:
    """Names as published; the rebuilt set marks its small slices by ``_128``."""
    return [name for name in (one.removesuffix("_128") for one in names) if name in published]
