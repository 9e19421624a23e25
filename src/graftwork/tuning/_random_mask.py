"""A random mask from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graftwork.deltas import BaseLike, SeededMask, seeded_counts, seeded_positions
from graftwork.tuning._check import check_kept, check_rates
from graftwork.tuning._fixed import FixedMask
from graftwork.tuning._layout import kept_count, layout_of
from graftwork.tuning._tuner import Attachment, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class RandomMask(Tuner):
    """Train values at random positions, drawn from a seed and so not stored.

    Each target gets positions in proportion to its size (largest remainder), uniformly inside.
    A strong rival of learned masks once its learning rate is tuned: measure it first. Embedding
    rows that no batch touches would waste their share: leave embedding tables out of the targets.

    Example:
        >>> RandomMask(share=0.001).stages[0].learning_rates
        {'values': 0.01, 'head': 0.001}
    """

    share: float = 0.005
    """Part of the targets' entries that is kept."""
    mask_seed: int | None = None
    """Seed of the positions; None takes the run's seed."""
    values_lr: float = 1e-2
    """Learning rate of the values. A sparse delta wants 10 to 30 times the dense rate: at the dense
    3e-4 it learns nothing."""
    head_lr: float = 1e-3
    """Learning rate of the head."""

    def __post_init__(self) -> None:
        check_kept(self.share)
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage("fixed mask", 1.0, {"values": self.values_lr, "head": self.head_lr}),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:
        """See `Tuner.attach`; `seed` draws the positions unless `mask_seed` is set."""
        layout = layout_of(base, targets)
        kept = kept_count(self.share, layout.numel)
        mask_seed = seed if self.mask_seed is None else self.mask_seed
        masks = {name: SeededMask(mask_seed, name) for name in layout.names}
        counts = seeded_counts(layout.sizes, kept)
        parts = [
            seeded_positions(masks[slot.name], slot.numel, count) + slot.start
            for slot, count in zip(layout.slots, counts, strict=True)
        ]
        values = torch.zeros(kept, dtype=layout.dtype)
        return FixedMask(base, layout, torch.cat(parts), values, masks)
