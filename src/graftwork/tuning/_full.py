"""Full fine-tuning, stored as a dense difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftwork.deltas import BaseLike
from graftwork.tuning._check import check_rates
from graftwork.tuning._dense import Dense
from graftwork.tuning._layout import layout_of
from graftwork.tuning._tuner import Attachment, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class Full(Tuner):
    """Train every entry of every target: the baseline that sparse deltas are measured against.

    The delta is a dense term for each target: 2 bytes an entry at float16, which rounds the
    DIFFERENCE from the base (11 bits of it), not the weight; store float32 for an exact one.

    Example:
        >>> Full().stages[0].learning_rates
        {'values': 0.0003, 'head': 0.001}
    """

    values_lr: float = 3e-4
    """Learning rate of the weights. 3e-4 suits encoders of some 10 M weights; large ones want 2e-5
    to 5e-5."""
    head_lr: float = 1e-3
    """Learning rate of the head, which starts from nothing."""

    def __post_init__(self) -> None:
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage("full", 1.0, {"values": self.values_lr, "head": self.head_lr}),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:  # noqa: ARG002
        """See `Tuner.attach`; nothing is random here."""
        return Dense(base, layout_of(base, targets))
