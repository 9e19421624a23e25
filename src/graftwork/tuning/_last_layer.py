"""Full fine-tuning of the last layer only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftwork.deltas import BaseLike
from graftwork.tuning._check import check_rates
from graftwork.tuning._dense import Dense
from graftwork.tuning._layers import last_layer
from graftwork.tuning._layout import layout_of
from graftwork.tuning._tuner import Attachment, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class LastLayer(Tuner):
    """Train the last numbered layer among the targets, densely (a baseline of Guo et al. 2020).

    The layer is read off the names: "encoder.layer.5" of "encoder.layer.5.output.dense.weight".
    Where no target has a number in its name it is the module of the last target.

    Example:
        >>> LastLayer().stages[0].name
        'last layer'
    """

    values_lr: float = 1e-3
    """Learning rate of the layer's weights: more than for the whole network, as it is one."""
    head_lr: float = 1e-3
    """Learning rate of the head."""

    def __post_init__(self) -> None:
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage("last layer", 1.0, {"values": self.values_lr, "head": self.head_lr}),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:  # noqa: ARG002
        """See `Tuner.attach`; targets outside the last layer stay as they are."""
        names = layout_of(base, targets).names
        return Dense(base, layout_of(base, last_layer(names)))
