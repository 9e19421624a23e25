"""Rows with the same list of deltas form a group, which stands together in the batch that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.deltas import NameMap, Part, Update
from graftwork.serving._prepared import Prepared

GroupKey = tuple[tuple[str, float], ...]
"""Content hashes with weights, in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One list of weighted deltas.

    Attributes:
        key: tells lists apart.
        members: the deltas with their weights.
    """

    key: GroupKey
    members: tuple[tuple[Prepared, float], ...]

    def touches(self, names: NameMap, parameter: str) -> bool:
        """Return whether a parameter of the live module changes."""
        return any(
            names[name].parameter == parameter for held, _ in self.members for name in held.updates
        )

    def parts(self, names: NameMap, parameter: str) -> tuple[Part, ...]:
        """Return what is done to a parameter of the live module, piece by piece."""
        found: dict[str, list[tuple[Update, float]]] = {}
        for held, weight in self.members:
            for name, update in held.updates.items():
                if names[name].parameter == parameter:
                    found.setdefault(names[name].name, []).append((update.update(), weight))
        return tuple(Part(names[name], tuple(terms)) for name, terms in found.items())


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Where the groups of a batch stand: group g has the rows `bounds[g]` to `bounds[g + 1]`.

    Attributes:
        bounds: `(G + 1,)`, from 0 to the number of rows (or of packed items).
        index: `(rows,)` int64, the group of each.
    """

    bounds: tuple[int, ...]
    index: Tensor

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device | str = "cpu") -> Span:
        """Return the span of groups with these numbers of rows."""
        bounds = [0]
        for size in sizes:
            bounds.append(bounds[-1] + size)
        index = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
        return cls(tuple(bounds), index.to(device))

    @property
    def count(self) -> int:
        """Rows."""
        return self.bounds[-1]

    def times(self, factor: int) -> list[int]:
        """Return the bounds where each row has `factor` entries."""
        return [bound * factor for bound in self.bounds]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """The spans of one batch.

    Attributes:
        rows: of its rows.
        items: of its packed items; None where rows are not packed.
    """

    rows: Span
    items: Span | None = None


def owners(names: NameMap, groups: Sequence[Group]) -> Mapping[str, None]:
    """Return the parameters of the live module that any group changes."""
    return dict.fromkeys(
        names[name].parameter
        for group in groups
        for held, _ in group.members
        for name in held.updates
    )
