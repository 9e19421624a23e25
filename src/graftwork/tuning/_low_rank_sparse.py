"""A low-rank term and a sparse one, trained together into one delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from graftwork.deltas import BaseLike, SeededMask, seeded_counts, seeded_positions
from graftwork.tuning._adapted import Adapted, Unused
from graftwork.tuning._check import check_choice, check_kept, check_rates, check_share
from graftwork.tuning._layout import Layout, kept_count, layout_of
from graftwork.tuning._low_rank_plan import LowRankPlan, low_rank_targets
from graftwork.tuning._trained import Entries, Trained
from graftwork.tuning._tuner import Attachment, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class LowRankSparse(Tuner):
    """`W' = W + (alpha / r) B A + S`, S sparse: few broad changes and some single ones.

    The sum is that of RoSA (Nikdan, Tabesh, Crnčević, Alistarh, 2024), after robust principal
    component analysis. RoSA takes S where gradients are largest; here its positions are drawn from
    a seed, as in `RandomMask`, and take no bytes. Vectors (biases, norms) get sparse values only.

    Example:
        >>> LowRankSparse().stages[0].learning_rates
        {'values': 0.001, 'sparse': 0.01, 'head': 0.001}
    """

    rank: int = 4
    """Rank of each product: half of LoRA's default, as S has the other half."""
    alpha: float = 8.0
    """Divided by the rank it multiplies the product."""
    share: float = 0.002
    """Part of the targets' entries that S keeps."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Rank for targets by pattern of their names; of several that match the last counts."""
    mask_seed: int | None = None
    """Seed of the positions; None takes the run's seed."""
    dropout: float = 0.0
    """Chance that an input of a low-rank branch is dropped in training."""
    unused: Unused = "error"
    """A target that the first step does not consume is an error; "allow" for models that route."""
    values_lr: float = 1e-3
    """Learning rate of the factors."""
    sparse_lr: float = 1e-2
    """Learning rate of the sparse values, which want some ten times more."""
    head_lr: float = 1e-3
    """Learning rate of the head."""

    def __post_init__(self) -> None:
        check_rates(values_lr=self.values_lr, sparse_lr=self.sparse_lr, head_lr=self.head_lr)
        check_kept(self.share)
        check_share("dropout", self.dropout, closed_below=True)
        check_choice("unused", self.unused, ("error", "allow"))
        self._plan()

    def _plan(self) -> LowRankPlan:
        return LowRankPlan(rank=self.rank, alpha=self.alpha, ranks=self.ranks)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        rates = {"values": self.values_lr, "sparse": self.sparse_lr, "head": self.head_lr}
        return (Stage("low rank and sparse", 1.0, rates, decay=tuple(rates)),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:
        """See `Tuner.attach`; `seed` draws A, and the positions unless `mask_seed` is set."""
        layout = layout_of(base, targets)
        found = {t.name: t for t in low_rank_targets(base, layout, self._plan(), seed=seed)}
        mask_seed = seed if self.mask_seed is None else self.mask_seed
        for name, entries in seeded_entries(layout, self.share, mask_seed).items():
            found.setdefault(name, Trained(base.names[name])).entries = entries
        merge = {"values_b": "values"}
        ordered = [found[name] for name in layout.names if name in found]
        return Adapted(base, ordered, dropout=self.dropout, unused=self.unused, merge=merge)


def seeded_entries(layout: Layout, share: float, mask_seed: int) -> dict[str, Entries]:
    """Return zero values at seeded positions by target, a share of all entries; none where 0."""
    counts = seeded_counts(layout.sizes, kept_count(share, layout.numel))
    found = {}
    for slot, count in zip(layout.slots, counts, strict=True):
        if count:
            mask = SeededMask(mask_seed, slot.name)
            positions = seeded_positions(mask, slot.numel, count).to(layout.device)
            values = torch.zeros(count, dtype=layout.dtype, device=layout.device)
            found[slot.name] = Entries(positions, nn.Parameter(values), mask)
    return found
