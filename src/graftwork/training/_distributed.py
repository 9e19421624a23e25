"""The processes that train one delta together: who we are, sums over all, one decision for all.

Gradients are reduced explicitly by the step (no wrapper around the model), because steps take
gradients of their own. Start the processes with torchrun; one process needs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """This process among all processes of a run.

    Attributes:
        rank: number of this process; 0 writes files and shows progress.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def reduce(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over all processes, in place."""
        if self.size == 1:
            return
        pending = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
        for work in pending:
            work.wait()

    def agree(self, value: T) -> T:
        """Return process 0's `value` in every process."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held)
        return held[0]

    def any(self, flag: bool) -> bool:
        """Return True in every process when `flag` is True in one of them."""
        if self.size == 1:
            return flag
        count = torch.tensor([int(flag)])
        self.reduce([count])
        return bool(count.item())

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


def current_world() -> World:
    """Return this process's place; one process where torch.distributed is not in use."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started, and leave them at the end.

    Outside torchrun, or where the caller has joined already, nothing is changed.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not launched or dist.is_initialized():
        yield current_world()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield current_world()
    finally:
        dist.destroy_process_group()
