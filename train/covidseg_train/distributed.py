"""Data parallelism: where this process stands among those that `torchrun` started, and sums over all of them."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of a training.

    Attributes:
        rank: Its number, from 0.
        world_size: How many there are; 1 without `torchrun`.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that logs, validates and writes."""
        return self.rank == 0


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes that `torchrun` started (NCCL on GPUs, gloo on CPUs); alone without it.

    A data-parallel network is to be made in a function that the block calls, so that it is gone when the block ends.
    Threads of a group that outlives the block ask for the interpreter while it ends, which aborts the process.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Ranks()
        return
    # Imported when the group is there (by the optimiser, say), it would keep the group for ever as a default argument.
    importlib.import_module("torch._dynamo")
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        gc.collect()  # a data-parallel network lies in a circle of references and holds the group
        dist.destroy_process_group()


class _SumOverRanks(torch.autograd.Function):
    """Sum a tensor over all ranks; the gradient of the sum flows to this rank's own share unchanged."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; the tensor itself where there is one.

    A loss made from such sums is the loss of the whole batch, the same on each rank. Each rank's gradient is that of
    its own share of the batch: added up over the ranks, they are the gradient of one process with the whole batch.
    """
    if not dist.is_initialized():
        return tensor
    total: Tensor = _SumOverRanks.apply(tensor)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return total
