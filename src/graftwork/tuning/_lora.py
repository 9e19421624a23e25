"""LoRA and its relatives that differ in scale, rates and start only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graftwork._errors import ConfigError
from graftwork.deltas import BaseLike
from graftwork.tuning._adapted import Adapted, Unused
from graftwork.tuning._check import check_choice, check_rates, check_share
from graftwork.tuning._layout import layout_of
from graftwork.tuning._low_rank_plan import LowRankPlan, Start, Vectors, low_rank_targets
from graftwork.tuning._tuner import Attachment, Role, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class LoRA(Tuner):
    """Add a product of two thin matrices to each weight (Hu et al., 2021, section 4.1).

    `W' = W + (alpha / r) B A` with `A (r, in)` random and `B (out, r)` zero, so that training
    starts at the base. A weight that a linear, convolution, embedding or Conv1D layer consumes is
    never formed: the layer adds `(alpha / r) (drop(x) A^T) B^T` to what it gives. Any other matrix
    (fused attention, LSTM, bare parameters) is computed when the forward reads it, a 3-D tensor as
    a stack of matrices with a product each.

    A tied weight is one target: every layer that holds it gets the same product, and the file holds
    it once. A convolution kernel `(out, in, k, k)` is seen as `(out, in k k)`: a convolution to r
    channels followed by one of width 1. A rank above the smaller side of a matrix is cut to it, and
    alpha is divided by the rank that is left.

    Relatives: `stabilised` is rsLoRA (Kalajdzievski, 2023, `alpha / sqrt(r)`); `b_ratio` is LoRA+
    (Hayou, Ghosh, Yu, 2024); `start="principal"` is PiSSA (Meng, Wang, Zhang, 2024), where the
    frozen weight stays as it is and what the principal part was is subtracted, so a delta of at
    most twice the rank comes out.

    Example:
        >>> tuner = LoRA(rank=4, ranks={"*.query.weight": 8}, b_ratio=16.0)
        >>> tuner.stages[0].learning_rates
        {'values': 0.001, 'head': 0.001, 'values_b': 0.016}
    """

    rank: int = 8
    """Rank of each product. 1 to 8 is enough for most tasks (Hu et al., table 6); bytes grow with
    it."""
    alpha: float = 16.0
    """Divided by the rank it multiplies the product. Twice the usual rank; not worth tuning beside
    the learning rate (section 4.1)."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Rank for targets by pattern of their names; of several that match the last counts."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Alpha for targets by pattern."""
    stabilised: bool = False
    """Divide alpha by the square root of the rank instead (rsLoRA): large ranks then keep
    learning."""
    b_ratio: float = 1.0
    """Learning rate of B over that of A (LoRA+ proposes 16). B is the factor that starts at 0."""
    start: Start = "zero"
    """"zero": B is 0. "principal": A and B are the weight's leading singular vectors (PiSSA)."""
    dropout: float = 0.0
    """Chance that an input of a branch is dropped in training; the frozen path keeps it. An error
    for targets that no layer runs as a branch."""
    blocks: Mapping[str, str] = field(default_factory=dict)
    """Pattern -> one digit for each equal block of the outputs, "101" for query and value of a
    merged projection: each 1 gets a pair of its own, of the full rank. (The file holds one term
    whose ranks add up, zeros outside the blocks.)"""
    vectors: Vectors = "leave"
    """Targets without two dimensions (biases, norms): "leave" them alone or "train" them
    densely."""
    unused: Unused = "error"
    """A target that the first step does not consume is an error; "allow" for models that route."""
    values_lr: float = 1e-3
    """Learning rate of the factors. The paper's 2e-4 to 5e-4 is for models of 100 M weights and
    more; small ones want 1e-3 and above."""
    head_lr: float = 1e-3
    """Learning rate of the head."""

    def __post_init__(self) -> None:
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)
        check_share("dropout", self.dropout, closed_below=True)
        check_choice("start", self.start, ("zero", "principal"))
        check_choice("vectors", self.vectors, ("leave", "train"))
        check_choice("unused", self.unused, ("error", "allow"))
        if not (math.isfinite(self.b_ratio) and self.b_ratio > 0.0):
            raise ConfigError(f"b_ratio: above 0, not {self.b_ratio}")
        self._plan()

    def _plan(self) -> LowRankPlan:
        return LowRankPlan(
            rank=self.rank,
            alpha=self.alpha,
            ranks=self.ranks,
            alphas=self.alphas,
            stabilised=self.stabilised,
            start=self.start,
            blocks=self.blocks,
            vectors=self.vectors,
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage; B is a role of its own where its rate differs."""
        rates: dict[Role, float] = {"values": self.values_lr, "head": self.head_lr}
        if self.b_ratio != 1.0:
            rates["values_b"] = self.values_lr * self.b_ratio
        return (Stage("low rank", 1.0, rates, decay=tuple(rates)),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:
        """See `Tuner.attach`; `seed` draws A."""
        found = low_rank_targets(base, layout_of(base, targets), self._plan(), seed=seed)
        merge: dict[Role, Role] = {"values_b": "values"} if self.b_ratio == 1.0 else {}
        return Adapted(base, found, dropout=self.dropout, unused=self.unused, merge=merge)
