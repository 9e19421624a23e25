"""A stage that scores every entry of the targets on the unchanged base, then keeps the best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from graftwork.deltas import BaseLike, Update
from graftwork.tuning._fixed import FixedMask
from graftwork.tuning._layout import Layout, Working
from graftwork.tuning._project import top_k
from graftwork.tuning._state import restore
from graftwork.tuning._tuner import Attachment, Group, StoredType

Accumulate = Callable[[Tensor, Tensor], None]
"""Adds a gradient `(n,)` (second) to the sums `(n,)` (first), in place."""


class Scores(Attachment):
    """Sums something of each step's gradient while only the head trains; then fixes the mask.

    The base's weights are only read: nothing is copied, and the one buffer holds the d sums.

    Arguments:
        base: the frozen base.
        layout: the flat space over the targets.
        kept: how many entries the mask keeps.
        warmup: part of the stage that only warms the head up. Gradients through a head that knows
            nothing yet say little about the task.
        accumulate: what is summed.
    """

    def __init__(
        self, base: BaseLike, layout: Layout, kept: int, warmup: float, accumulate: Accumulate
    ) -> None:
        self._base, self._layout, self._kept = base, layout, kept
        self._warmup, self._accumulate = warmup, accumulate
        self._working = Working(base, layout, writable=False)
        self._working.choose(range(len(layout.slots)))
        self.module = self._working.module
        self._sums = torch.zeros(layout.numel, dtype=layout.dtype, device=layout.device)
        self._counted = torch.zeros(1, dtype=torch.int64)
        self._counting = warmup == 0.0

    def groups(self) -> Sequence[Group]:
        """Return nothing: only the head trains."""
        return ()

    def prepare(self, progress: float, *, seed: int) -> None:  # noqa: ARG002  (nothing is drawn)
        """Note whether this step counts."""
        self._counting = progress >= self._warmup

    @torch.no_grad()
    def collect(self) -> None:
        """Add this step's gradients to the sums."""
        self._working.check_gradients()
        if self._counting:
            self._counted += 1
            for i, slot in enumerate(self._layout.slots):
                gradient = self._working.slot(i).gradient()
                if gradient is not None:
                    self._accumulate(self._sums[slot.start : slot.stop], gradient)
        self._working.drop_gradients()

    @contextmanager
    def settled(self) -> Iterator[nn.Module]:
        """Return the module, which runs like the base."""
        yield self.module

    def advance(self) -> Attachment | None:
        """Return the fixed-mask stage over the highest |sums|, values starting at 0."""
        positions = top_k(_over_processes(self._sums).abs(), self._kept)
        values = torch.zeros(self._kept, dtype=self._layout.dtype)
        return FixedMask(self._base, self._layout, positions, values)

    def extract(self, stored: StoredType = "float16") -> dict[str, Update]:  # noqa: ARG002
        """Return no updates: nothing has been learnt yet."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums and how many steps they count."""
        return {"sums": self._sums, "counted": self._counted}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the sums."""
        restore(self.tensors(), tensors)

    def report(self) -> dict[str, float]:
        """Return how many steps the scores count."""
        return {"scored_steps": float(self._counted)}


def _over_processes(sums: Tensor) -> Tensor:
    """Return the sums over all processes, so that each keeps the same mask."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        sums = sums.clone()
        distributed.all_reduce(sums)
    return sums
