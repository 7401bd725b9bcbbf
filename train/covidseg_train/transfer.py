"""The strategies: which network, what is loaded into it, what stands still, which learning rates.

The paper (Wang et al. 2021) compares four; their names and details beyond the hybrid encoder are not in the material
we have, so this is a reading:

- ``scratch``: random weights.
- ``continual``: everything transferred, everything trained. From a multi-task training the heads are the mean of
  its tasks' heads.
- ``body``: encoder and decoder transferred, new heads.
- ``encoder``: encoder transferred, new decoder and heads.
- ``hybrid``: the encoder transferred as the adapted encoder beside a new dedicated one; fusion, decoder and heads
  are new. From a hybrid network it goes on: everything is transferred, and what is frozen or trains at its own rate
  is the adapted encoder as ever.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from covidseg_runtime.errors import SettingsError
from covidseg_train.config import ExperimentConfig, TransferConfig
from covidseg_train.hybrid import HybridEncoderUNet
from covidseg_train.unet import MultiTaskUNet, SegmentationNetwork, UNet3d

# Part of the source → part of the new network.
TRANSFERRED_PARTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "scratch": {},
        "continual": {"encoder": "encoder", "decoder": "decoder", "heads": "heads"},
        "body": {"encoder": "encoder", "decoder": "decoder"},
        "encoder": {"encoder": "encoder"},
        "hybrid": {"encoder": "adapted_encoder"},
    }
)
_WHOLE_HYBRID: Mapping[str, str] = MappingProxyType(
    {part: part for part in ("adapted_encoder", "dedicated_encoder", "fusions", "decoder", "heads")}
)


@dataclass(frozen=True)
class TransferReport:
    """What a transfer did, by tensor name.

    Attributes:
        strategy: The strategy.
        source: Checkpoint the tensors came from; empty for ``scratch``.
        loaded: Tensors of the new network that were taken over.
        new: Tensors that stayed random.
        skipped: Tensors of the source that nothing took.
        frozen: Tensors that never train.
    """

    strategy: str
    source: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    skipped: tuple[str, ...]
    frozen: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """One line for a log."""
        counts = (
            f"{len(self.loaded)} tensors loaded, {len(self.new)} new, {len(self.skipped)} of the source skipped, "
            f"{len(self.frozen)} frozen"
        )
        return f"{self.strategy}: {counts}" + (f" (from {self.source})" if self.source else "")


def build_network(config: ExperimentConfig) -> SegmentationNetwork:
    """The network of an experiment, with random weights.

    Raises:
        SettingsError: If ``hybrid`` is asked for together with several tasks.
    """
    tasks = config.data.tasks()
    if config.transfer.strategy == "hybrid":
        if len(tasks) > 1:
            raise SettingsError(f"The hybrid strategy has one task; data has {', '.join(tasks)}.")
        return HybridEncoderUNet(config.network, config.transfer.fusion)
    return MultiTaskUNet(config.network, tasks) if len(tasks) > 1 else UNet3d(config.network)


def apply_transfer(network: nn.Module, source: Mapping[str, Tensor], transfer: TransferConfig) -> TransferReport:
    """Load the promised tensors and freeze the promised ones.

    Args:
        network: What ``build_network`` gave; changed in place.
        source: Tensors of the other network (``encoder.…``, ``decoder.…``, ``heads.…``, of a hybrid those of its
            parts); empty for ``scratch``.
        transfer: The strategy.

    Raises:
        SettingsError: If the source has not the promised tensors, or of another shape.
    """
    own = network.state_dict()
    loaded: dict[str, Tensor] = {}
    taken: set[str] = set()
    for source_part, own_part in _parts_from(source, transfer).items():
        for name in (name for name in own if name.startswith(f"{own_part}.")):
            names = _source_names(source, source_part, name.removeprefix(f"{own_part}."))
            loaded[name] = _promised(source, names, own[name].shape)
            taken.update(names)
    with torch.no_grad():
        for name, tensor in loaded.items():
            own[name].copy_(tensor)
    frozen = _freeze(network, transfer, loaded) if transfer.frozen_steps == -1 else ()
    return TransferReport(
        strategy=transfer.strategy,
        source=transfer.checkpoint,
        loaded=tuple(loaded),
        new=tuple(name for name in own if name not in loaded),
        skipped=tuple(name for name in source if name not in taken),
        frozen=frozen,
    )


def transferred_prefixes(transfer: TransferConfig) -> tuple[str, ...]:
    """How the names of tensors begin in the parts of the new network that the strategy takes over."""
    return tuple(f"{part}." for part in TRANSFERRED_PARTS[transfer.strategy].values())


def _parts_from(source: Mapping[str, Tensor], transfer: TransferConfig) -> Mapping[str, str]:
    goes_on = transfer.strategy == "hybrid" and any(name.startswith("dedicated_encoder.") for name in source)
    return _WHOLE_HYBRID if goes_on else TRANSFERRED_PARTS[transfer.strategy]


def _source_names(source: Mapping[str, Tensor], part: str, rest: str) -> list[str]:
    """The tensors of the source that make one of the new network; of a head, that of every task."""
    others = [name for name in source if name.startswith("other_heads.") and name.endswith(f".{rest}")]
    return [f"{part}.{rest}", *(others if part == "heads" else [])]


def _promised(source: Mapping[str, Tensor], names: Sequence[str], shape: torch.Size) -> Tensor:
    """The named tensor of the source, or the mean of several."""
    first = source.get(names[0])
    if first is None or first.shape != shape:
        found = "missing" if first is None else f"of shape {tuple(first.shape)}"
        raise SettingsError(
            f"{names[0]} of shape {tuple(shape)} was to be transferred and is {found} in the source; both trainings "
            "need the same network."
        )
    return first if len(names) == 1 else torch.stack([source[name] for name in names]).mean(dim=0)


def _freeze(network: nn.Module, transfer: TransferConfig, loaded: Mapping[str, Tensor]) -> tuple[str, ...]:
    frozen = tuple(name for name in loaded if name.startswith(transferred_prefixes(transfer)))
    for name, parameter in network.named_parameters():
        if name in frozen:
            parameter.requires_grad = False
    return frozen


def still_normalisations(network: nn.Module, config: ExperimentConfig, step: int) -> list[nn.Module]:
    """The batch normalisations whose running statistics stand still at a step.

    Those of the parts that stand still themselves, and towards the end of the run all (``still_statistics_after``).
    """
    named = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.BatchNorm3d)]
    if step >= config.run.still_statistics_after * config.run.steps:
        return [module for _, module in named]
    transfer = config.transfer
    if 0 <= transfer.frozen_steps <= step:
        return []
    return [module for name, module in named if name.startswith(transferred_prefixes(transfer))]
