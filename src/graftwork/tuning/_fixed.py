"""The fixed-mask stage: k values at given positions, everything else the base's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from graftwork._errors import DeltaError
from graftwork.deltas import BaseLike, Port, SeededMask, Update, values_of
from graftwork.tuning._check import refuse_others
from graftwork.tuning._extract import sparse_updates
from graftwork.tuning._layout import Layout, Working
from graftwork.tuning._state import restore
from graftwork.tuning._tuner import Attachment, Group, StoredType


class FixedMask(Attachment):
    """Trains k values; the optimiser holds k moments, not d (Guo et al. 2020, section 3, stage 3).

    Entries off the mask cannot move: they are no trainable values, so no moment and no weight decay
    reaches them. A target without kept positions is the base's own tensor and gets no gradient.

    Arguments:
        base: the frozen base.
        layout: the flat space over the targets.
        positions: `(k,)` int64 flat positions, strictly increasing.
        values: `(k,)` starting values.
        masks: seeds that reproduce the positions, by canonical name, where there are any.
    """

    def __init__(
        self,
        base: BaseLike,
        layout: Layout,
        positions: Tensor,
        values: Tensor,
        masks: Mapping[str, SeededMask] | None = None,
    ) -> None:
        self._layout = layout
        self._masks = dict(masks or {})
        self._working = Working(base, layout)
        self.module = self._working.module
        self._values = nn.Parameter(values.detach().to(layout.device, layout.dtype, copy=True))
        self._place(positions.to(layout.device))

    def _place(self, positions: Tensor) -> None:
        self._positions = positions
        self._locals: dict[int, tuple[slice, Tensor]] = {}
        done = 0
        for i, local in enumerate(self._layout.split(positions)):
            if local.numel():
                self._locals[i] = (slice(done, done + local.numel()), local)
            done += local.numel()
        self._working.choose(self._locals)
        at_base = [self._working.slot(i).base[local] for i, (_, local) in self._locals.items()]
        self._at_base = torch.cat(at_base) if at_base else self._values.detach().clone()

    def groups(self) -> Sequence[Group]:
        """Return the k values."""
        return (Group("values", (self._values,)),)

    def prepare(self, progress: float, *, seed: int) -> None:  # noqa: ARG002  (nothing is drawn)
        """Write the k working weights."""
        self._write()

    @torch.no_grad()
    def _write(self) -> None:
        adapted = self._at_base + self._values
        for i, (part, local) in self._locals.items():
            self._working.slot(i).work.index_copy_(0, local, adapted[part])
        self._working.flush()

    @torch.no_grad()
    def collect(self) -> None:
        """Gather k gradients and free the working ones."""
        self._working.check_gradients()
        gradient = torch.zeros_like(self._values)
        for i, (part, local) in self._locals.items():
            found = self._working.slot(i).gradient()
            if found is not None:
                gradient[part] = found[local]
        self._working.drop_gradients()
        self._values.grad = gradient

    @contextmanager
    def settled(self) -> Iterator[nn.Module]:
        """Return the module with the current values written."""
        self._write()
        yield self.module

    def start_from(self, updates: Mapping[str, Update], ports: Mapping[str, Port]) -> None:
        """See `Attachment.start_from`; the delta's positions take the place of the drawn ones."""
        refuse_others("FixedMask", updates, ports, "sparse", self._layout.names)
        held = [updates.get(name) for name in self._layout.names]
        parts = [
            (slot.start + update.sparse.positions, values_of(update.sparse.values))
            for slot, update in zip(self._layout.slots, held, strict=True)
            if update is not None and update.sparse is not None
        ]
        count = sum(positions.numel() for positions, _ in parts)
        if count != self._values.numel():
            raise DeltaError(
                f"the delta keeps {count} values, this tuner {self._values.numel()}; set its share "
                f"to {(count + 0.5) / self._layout.numel:.6g}"
            )
        self._masks = {
            name: update.sparse.mask
            for name, update in updates.items()
            if update.sparse is not None and update.sparse.mask is not None
        }
        with torch.no_grad():
            self._values.copy_(torch.cat([values for _, values in parts]))
        self._place(torch.cat([positions for positions, _ in parts]).to(self._layout.device))

    def advance(self) -> Attachment | None:
        """Return None: this is a last stage."""
        return None

    def extract(self, stored: StoredType = "float16") -> dict[str, Update]:
        """Return the k values; one that rounds to 0 stays in the support."""
        return sparse_updates(self._layout, self._positions, self._values, stored, self._masks)

    def tensors(self) -> dict[str, Tensor]:
        """Return values and positions."""
        return {"values": self._values.detach(), "positions": self._positions}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore values and positions; the mask may differ from the one attached with."""
        restore(self.tensors(), tensors)
        self._place(self._positions)

    def report(self) -> dict[str, float]:
        """Return the number of kept values and the tensors they lie in."""
        return {"kept": float(self._values.numel()), "tensors": float(len(self._locals))}
