"""Which rows of a batch have which deltas, and how such a batch is taken apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graftwork._batch import Batch
from graftwork.serving._groups import Group, Span, Spans
from graftwork.serving._layout import leaves_of
from graftwork.serving._way import lengthened


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Plan:
    """Which rows of a batch have which deltas.

    Attributes:
        groups: the different lists of deltas.
        order: `(B,)` int64, row of the batch that stands at each place when it runs.
        sizes: rows of each group.
    """

    groups: tuple[Group, ...]
    order: Tensor
    sizes: tuple[int, ...]


def spans_of(sizes: Sequence[int], batch: Batch, device: torch.device) -> Spans:
    """Return where groups of these sizes stand in a batch that is in their order."""
    rows = Span.of(sizes, device)
    if batch.row_of is None:
        return Spans(rows)
    each = torch.bincount(rows.index[batch.row_of.to(device)], minlength=len(sizes))
    return Spans(rows, Span.of(each.tolist(), device))


def stretches(plan: Plan) -> Iterator[tuple[tuple[Group, ...], tuple[int, ...]]]:
    """Yield groups that share a forward, with their sizes, in the plan's order."""
    pairs = zip(plan.groups, plan.sizes, strict=True)
    for _, found in itertools.groupby(pairs, key=lambda pair: lengthened(pair[0])):
        groups, sizes = zip(*found, strict=True)
        yield groups, sizes


def filled(batch: Batch, sizes: Sequence[int]) -> tuple[Batch, tuple[int, ...]]:
    """Return a batch filled up to a power of two by its last row, and the sizes of its groups."""
    missing = (1 << (len(batch) - 1).bit_length()) - len(batch)
    if not missing or batch.row_of is not None:
        return batch, tuple(sizes)
    rows = torch.arange(len(batch) + missing).clamp(max=len(batch) - 1)
    return batch.select(rows), (*sizes[:-1], sizes[-1] + missing)


def form_of(batch: Batch) -> tuple[Any, ...]:
    """Return what makes batches alike: names, types and dimensions of their inputs."""
    return (
        batch.row_of is not None,
        *(
            (path, leaf.dtype, leaf.dim()) if isinstance(leaf, Tensor) else (path, type(leaf))
            for path, leaf in leaves_of(batch.inputs).items()
        ),
    )
