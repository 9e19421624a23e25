"""DoRA: magnitude and direction of each output, trained apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graftwork.deltas import BaseLike
from graftwork.tuning._adapted import Adapted, Unused
from graftwork.tuning._check import check_choice, check_rates, check_share
from graftwork.tuning._layout import layout_of
from graftwork.tuning._low_rank_plan import LowRankPlan, low_rank_targets
from graftwork.tuning._trained import Magnitude, Trained
from graftwork.tuning._tuner import Attachment, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class DoRA(Tuner):
    """Weight-decomposed low-rank adaptation (Liu et al., 2024, eq. 5).

    `W' = m (W + (alpha / r) B A) / ||W + (alpha / r) B A||`, the norm of each output's weights, and
    `m` trained from `||W||`. In the delta it is a low-rank term with a scale. The norm counts as a
    constant in the gradient (section 4.3). Dropout acts on the low-rank branch only, where the
    authors' code drops inputs of the frozen path too.

    Example:
        >>> DoRA(rank=4).stages[0].learning_rates
        {'values': 0.001, 'head': 0.001}
    """

    rank: int = 8
    """Rank of each product; half of LoRA's often does (section 5.5)."""
    alpha: float = 16.0
    """Divided by the rank it multiplies the product."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Rank for targets by pattern of their names; of several that match the last counts."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Alpha for targets by pattern."""
    stabilised: bool = False
    """Divide alpha by the square root of the rank instead (rsLoRA)."""
    dropout: float = 0.0
    """Chance that an input of a low-rank branch is dropped in training."""
    unused: Unused = "error"
    """A target that the first step does not consume is an error; "allow" for models that route."""
    values_lr: float = 1e-3
    """Learning rate of factors and magnitudes."""
    head_lr: float = 1e-3
    """Learning rate of the head."""

    def __post_init__(self) -> None:
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)
        check_share("dropout", self.dropout, closed_below=True)
        check_choice("unused", self.unused, ("error", "allow"))
        self._plan()

    def _plan(self) -> LowRankPlan:
        return LowRankPlan(
            rank=self.rank,
            alpha=self.alpha,
            ranks=self.ranks,
            alphas=self.alphas,
            stabilised=self.stabilised,
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage("low rank", 1.0, {"values": self.values_lr, "head": self.head_lr}),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:
        """See `Tuner.attach`; `seed` draws A."""
        layout = layout_of(base, targets)
        found = low_rank_targets(base, layout, self._plan(), seed=seed)
        for target in found:
            weight = target.piece.of(base.model.get_parameter(target.piece.parameter).detach())
            target.scale = Magnitude(weight.to(layout.dtype), _inputs(target))
        merge = {"values_b": "values"}
        return Adapted(base, found, dropout=self.dropout, unused=self.unused, merge=merge)


def _inputs(target: Trained) -> tuple[int, ...]:
    """Return the dimensions that do not tell one output from another."""
    if target.columns:
        return (0,)
    return tuple(range(2 if target.stack else 1, len(target.piece.shape)))
