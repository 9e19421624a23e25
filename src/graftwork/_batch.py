"""A batch: a tree of tensors, so that no base, loss, label or head is assumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows drawn from a stream.

    Attributes:
        inputs: tree of tensors; the first dimension of each is the row, unless `row_of` is set.
        targets: `(B, ...)` labels (int64) or values (float32); None for unlabelled rows.
        rows: `(B,)` int64, index of each row in its source.
        row_of: for packed inputs (points, graphs, frames), `(N,)` int64 row of each packed item.
    """

    inputs: Mapping[str, Any]
    targets: Tensor | None
    rows: Tensor
    row_of: Tensor | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return self.rows.numel()

    def select(self, rows: Tensor) -> Batch:
        """Return the batch of the given row indices (`(b,)` int64 into this batch)."""
        if self.row_of is None:
            inputs = map_tree(lambda t: t[rows], self.inputs)
            row_of = None
        else:
            keep = (self.row_of[:, None] == rows[None, :]).nonzero()
            order = keep[:, 1].argsort(stable=True)
            items = keep[order, 0]
            inputs = map_tree(lambda t: t[items], self.inputs)
            row_of = keep[order, 1]
        targets = None if self.targets is None else self.targets[rows]
        return replace(self, inputs=inputs, targets=targets, rows=self.rows[rows], row_of=row_of)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        return Batch(
            inputs=map_tree(move, self.inputs),
            targets=None if self.targets is None else move(self.targets),
            rows=move(self.rows),
            row_of=None if self.row_of is None else move(self.row_of),
        )


def map_tree(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Return `tree` with `function` applied to each tensor; other leaves stay."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tree(function, value) for key, value in tree.items()}
    return tree
