"""Groups of weights that share a gate."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from graftwork.deltas import layer_of
from graftwork.tuning._layout import Layout

GroupRule = Literal["tensor", "neuron", "layer"]
GROUP_RULES: tuple[GroupRule, ...] = ("tensor", "neuron", "layer")
GroupOf = Callable[[str], Hashable]
"""Canonical name -> group id: tensors with one id share a gate."""


@dataclass(frozen=True, slots=True)
class SlotGroups:
    """The groups of one target.

    Attributes:
        first: group of its first row.
        rows: how many groups it has; row i of the target belongs to group `first + i`. With 1 the
            whole target is in group `first`.
    """

    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class Groups:
    """Which group each entry of the flat space belongs to.

    Attributes:
        slots: one for each target.
        count: groups in all.
    """

    slots: tuple[SlotGroups, ...]
    count: int

    def of_positions(self, layout: Layout, positions: Tensor) -> Tensor:
        """Return the group `(k,)` int64 of each sorted flat position `(k,)`."""
        parts = []
        for slot, groups, local in zip(
            layout.slots, self.slots, layout.split(positions), strict=True
        ):
            entries = slot.numel // groups.rows
            parts.append(local.div(entries, rounding_mode="floor") + groups.first)
        return torch.cat(parts)


def groups_of(layout: Layout, rule: GroupRule | GroupOf) -> Groups:
    """Return the groups of a layout.

    Arguments:
        layout: the flat space.
        rule: "tensor": each target is a group (the paper's choice). "neuron": each slice along
            dimension 0 as stored (the output row of a linear or convolution weight), vectors
            whole. "layer": all targets of a layer, by the first number in the name. A callable
            maps a canonical name to a group id.
    """
    if rule == "neuron":
        return _neurons(layout)
    of: GroupOf = rule if callable(rule) else layer_of if rule == "layer" else str
    numbers: dict[Hashable, int] = {}
    slots = tuple(
        SlotGroups(numbers.setdefault(of(slot.name), len(numbers)), 1) for slot in layout.slots
    )
    return Groups(slots, len(numbers))


def _neurons(layout: Layout) -> Groups:
    slots: list[SlotGroups] = []
    count = 0
    for slot in layout.slots:
        shape = slot.piece.shape
        rows = shape[0] if len(shape) > 1 else 1
        slots.append(SlotGroups(count, rows))
        count += rows
    return Groups(tuple(slots), count)
