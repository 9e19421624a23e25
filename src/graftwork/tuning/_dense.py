"""Dense tuning: every entry of the targets is trained as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from graftwork.deltas import BaseLike, Port, Update, quantise, values_of
from graftwork.tuning._check import refuse_others
from graftwork.tuning._layout import Layout, Working
from graftwork.tuning._state import restore
from graftwork.tuning._tuner import Attachment, Group, StoredType


class Dense(Attachment):
    """Full fine-tuning of the targets.

    A target that is a whole float32 (float64) parameter is trained in place. A piece of a fused
    parameter, or a half-precision one, has a master copy of the compute type that is written to the
    module before each step, because small changes would be lost in 16 bits.

    Arguments:
        base: the frozen base.
        layout: the flat space over the targets.
        then: makes the next stage's attachment from this one; None when this is the last stage.
    """

    def __init__(
        self,
        base: BaseLike,
        layout: Layout,
        then: Callable[[Dense], Attachment] | None = None,
    ) -> None:
        self._layout, self._then = layout, then
        self._working = Working(base, layout)
        self._working.choose(range(len(layout.slots)))
        self.module = self._working.module
        self._trained: list[nn.Parameter] = []
        for i, slot in enumerate(layout.slots):
            working = self._working.slot(i)
            master = working.base.clone().view(slot.piece.shape)
            self._trained.append(working.leaf if working.direct else nn.Parameter(master))

    def groups(self) -> Sequence[Group]:
        """Return one tensor for each target."""
        return (Group("values", tuple(self._trained)),)

    def prepare(self, progress: float, *, seed: int) -> None:  # noqa: ARG002  (nothing is drawn)
        """Write master copies to the module; whole float32 targets need nothing."""
        self._write()

    @torch.no_grad()
    def _write(self) -> None:
        for i, trained in enumerate(self._trained):
            working = self._working.slot(i)
            if not working.direct:
                working.work.copy_(trained.view(-1))
        self._working.flush()

    @torch.no_grad()
    def collect(self) -> None:
        """Move gradients of master copies; whole float32 targets have theirs already."""
        self._working.check_gradients()
        indirect = [i for i in range(len(self._trained)) if not self._working.slot(i).direct]
        for i in indirect:
            gradient = self._working.slot(i).gradient()
            shape = self._trained[i].shape
            # a piece's gradient is a view of the parameter's, which is freed below
            self._trained[i].grad = None if gradient is None else gradient.view(shape).clone()
        for i in indirect:
            self._working.slot(i).leaf.grad = None

    @contextmanager
    def settled(self) -> Iterator[nn.Module]:
        """Return the module with the current values written."""
        self._write()
        yield self.module

    def start_from(self, updates: Mapping[str, Update], ports: Mapping[str, Port]) -> None:
        """See `Attachment.start_from`."""
        refuse_others("Dense", updates, ports, "dense", self._layout.names)
        with torch.no_grad():
            for slot, trained in zip(self._layout.slots, self._trained, strict=True):
                dense = updates[slot.name].dense if slot.name in updates else None
                if dense is not None:
                    trained.add_(values_of(dense).to(trained))
        self._write()

    def difference(self) -> Tensor:
        """Return `(d,)` current values minus the base's."""
        pairs = ((t, self._working.slot(i).base) for i, t in enumerate(self._trained))
        return torch.cat([trained.detach().view(-1) - base for trained, base in pairs])

    def advance(self) -> Attachment | None:
        """Return the next stage's attachment, where there is one."""
        return None if self._then is None else self._then(self)

    def extract(self, stored: StoredType = "float16") -> dict[str, Update]:
        """Return one dense update for each target that changed."""
        updates: dict[str, Update] = {}
        parts = self.difference().cpu().split(self._layout.sizes)
        for slot, part in zip(self._layout.slots, parts, strict=True):
            if bool(part.any()):
                dense = quantise(part.view(slot.piece.shape), stored)
                updates[slot.name] = Update(slot.piece.shape, dense=dense)
        return updates

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors by canonical name."""
        return {n: t.detach() for n, t in zip(self._layout.names, self._trained, strict=True)}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the trained tensors."""
        restore(self.tensors(), tensors)
