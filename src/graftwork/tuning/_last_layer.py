"""Full fine-tuning of the last layer only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftwork.deltas import BaseLike, layer_of
from graftwork.tuning._check import check_rates
from graftwork.tuning._dense import Dense
from graftwork.tuning._layout import layout_of
from graftwork.tuning._tuner import Attachment, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class LastLayer(Tuner):
    """Train the last numbered layer among the targets, densely (a baseline of Guo et al. 2020).

    The layer is read off the names: "encoder.layer.5" of "encoder.layer.5.output.dense.weight".
    Where no target has a number in its name it is the top-level module of the last target.

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


def last_layer(names: Sequence[str]) -> list[str]:
    """Return the names in the last numbered layer, or in the last module where none is numbered.

    "Last" is by the order of `names`, which is the module's own: of an encoder and a decoder it is
    the decoder's last layer.

    Example:
        >>> last_layer(["layer.0.w", "layer.1.w", "layer.1.b", "pooler.w"])
        ['layer.1.w', 'layer.1.b']
    """
    layers = [layer_of(name) for name in names]
    numbered = [layer for layer in layers if layer.rpartition(".")[2].isdecimal()]
    last = (numbered or layers)[-1]
    return [name for name, layer in zip(names, layers, strict=True) if layer == last]
