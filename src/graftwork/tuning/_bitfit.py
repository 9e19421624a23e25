"""BitFit: biases only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftwork._errors import ConfigError
from graftwork.deltas import BaseLike
from graftwork.tuning._check import check_rates
from graftwork.tuning._dense import Dense
from graftwork.tuning._layout import layout_of
from graftwork.tuning._tuner import Attachment, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class BitFit(Tuner):
    """Train the biases among the targets, densely (Ben Zaken, Ravfogel, Goldberg, 2022).

    A bias is a target whose own name holds "bias": of linear, convolution and norm layers, of fused
    attention ("in_proj_bias") and of recurrent layers ("bias_ih_l0"). Other targets stay.

    Example:
        >>> BitFit().stages[0].learning_rates
        {'values': 0.001, 'head': 0.001}
    """

    values_lr: float = 1e-3
    """Learning rate of the biases; the paper's best lie between 1e-4 and 1e-3 for BERT."""
    head_lr: float = 1e-3
    """Learning rate of the head."""

    def __post_init__(self) -> None:
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage("biases", 1.0, {"values": self.values_lr, "head": self.head_lr}),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:  # noqa: ARG002
        """See `Tuner.attach`; nothing is random here.

        Raises:
            ConfigError: no target is a bias.
        """
        names = layout_of(base, targets).names
        biases = [name for name in names if "bias" in name.rpartition(".")[2]]
        if not biases:
            raise ConfigError(f"none of the {len(names)} targets is a bias (first: {names[0]!r})")
        return Dense(base, layout_of(base, biases))
