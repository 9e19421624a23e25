"""From flat trainable values to updates by canonical name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from graftwork.deltas import SeededMask, Sparse, Update, quantise
from graftwork.tuning._layout import Layout
from graftwork.tuning._tuner import StoredType


def sparse_updates(
    layout: Layout,
    positions: Tensor,
    values: Tensor,
    stored: StoredType,
    masks: Mapping[str, SeededMask] | None = None,
) -> dict[str, Update]:
    """Return one sparse update for each target that has positions.

    Arguments:
        layout: the flat space.
        positions: `(k,)` int64 flat positions, strictly increasing.
        values: `(k,)` values added there.
        stored: type the values are rounded to; a value that rounds to 0 stays in the support.
        masks: seeds that reproduce the positions, by canonical name, where there are any.
    """
    masks, updates, done = masks or {}, {}, 0
    values = values.detach().cpu()
    for slot, local in zip(layout.slots, layout.split(positions.cpu()), strict=True):
        part = values[done : done + local.numel()]
        done += local.numel()
        if local.numel() == 0:
            continue
        sparse = Sparse(local, quantise(part, stored), masks.get(slot.name))
        updates[slot.name] = Update(slot.piece.shape, sparse=sparse)
    return updates
