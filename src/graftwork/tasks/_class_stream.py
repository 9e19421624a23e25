"""A stream whose every batch holds all classes, in their shares of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork._batch import Batch
from graftwork._errors import InputError
from graftwork.tasks._call_spec import TaskBase
from graftwork.tasks._encoded import Encoded
from graftwork.tasks._pinned import permutation
from graftwork.tasks._signature import Signature
from graftwork.tasks._table import Table


@dataclass(eq=False, kw_only=True)
class ClassStream:
    """Batches with every class of a table, each in its share, at least two rows where it has them.

    A distance between data sets compares all classes at once, so rows may not be drawn one by one.
    Batch i is a pure function of (seed, name, i): each class goes through permutations of its rows,
    as `TableStream` does of all. Every process draws the whole batch, because a distance is no sum
    over rows that could be shared out.

    Args:
        table: the rows.
        signature: which columns are read, and how.
        base: as for `TableStream`.
        labels: `(rows,)` class of each row; targets of the batches.
        name: the stream's name.
        rows: rows of a batch; all of the table where it has no more.
        seed: of the order.

    Raises:
        InputError: labels of another number, or fewer rows than classes.
    """

    table: Table
    signature: Signature
    base: TaskBase
    labels: NDArray[np.int64]
    name: str = "align"
    rows: int = 256
    seed: int = 0
    digest: str = field(init=False)
    groups: tuple[str, ...] | None = field(init=False, default=None)
    _encoded: Encoded = field(init=False, repr=False)
    _members: list[NDArray[np.int64]] = field(init=False, repr=False)
    _quotas: list[int] = field(init=False, repr=False)
    _index: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.table):
            raise InputError(f"{len(self.labels)} labels for {len(self.table)} rows")
        classes = np.unique(self.labels)
        self._members = [np.flatnonzero(self.labels == c) for c in classes]
        if self.rows < len(classes):
            raise InputError(
                f"batches of {self.rows} rows cannot hold {len(classes)} classes; use more rows"
            )
        self._encoded = self.signature.encode_table(self.base, self.table)
        self._quotas = quotas([len(m) for m in self._members], self.rows)
        self.digest = self.table.digest

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.table)

    def shard(self, rank: int, world: int) -> None:
        """Do nothing: every process draws the whole batch."""

    def seek(self, index: int) -> None:
        """Make batch `index` the next one."""
        self._index = index

    def draw(self) -> Batch:
        """Return the next batch, rows in the order of the table."""
        parts = [self._part(c, self._index) for c in range(len(self._members))]
        self._index += 1
        return self._batch(np.sort(np.concatenate(parts)))

    def _part(self, number: int, index: int) -> NDArray[np.int64]:
        members, quota = self._members[number], self._quotas[number]
        places = np.arange(index * quota, (index + 1) * quota)
        epochs, offsets = np.divmod(places, len(members))
        out = np.empty(quota, dtype=np.int64)
        for epoch in np.unique(epochs):
            order = permutation(len(members), self.seed, self.name, number, int(epoch))
            here = epochs == epoch
            out[here] = members[order[offsets[here]]]
        return out

    def once(self, batch_size: int | None = None, *, by_length: bool = False) -> Iterator[Batch]:
        """Iterate once over all rows, without moving the stream."""
        del by_length
        size = batch_size or self.rows
        for first in range(0, len(self), size):
            yield self._batch(np.arange(first, min(first + size, len(self))))

    def _batch(self, rows: NDArray[np.int64]) -> Batch:
        labels = torch.from_numpy(self.labels[rows])
        return Batch(self._encoded.collate(rows), labels, torch.from_numpy(rows))

    def state(self) -> dict[str, Tensor]:
        """Return the position."""
        return {"index": torch.tensor(self._index)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.seek(int(state["index"]))


def quotas(sizes: list[int], rows: int) -> list[int]:
    """Return how many rows of each class a batch has: its share, at least 2, at most all.

    Example:
        >>> quotas([90, 9, 1], 20), quotas([3, 3], 100)
        ([17, 2, 1], [3, 3])
    """
    total = sum(sizes)
    if rows >= total:
        return list(sizes)
    exact = [rows * size / total for size in sizes]
    least = [min(2, size) for size in sizes]
    out = [max(low, int(e)) for low, e in zip(least, exact, strict=True)]
    by_rest = sorted(range(len(sizes)), key=lambda i: out[i] - exact[i])
    for i in by_rest[: max(0, rows - sum(out))]:
        out[i] += 1
    while sum(out) > rows and max(out) > 1:
        out[out.index(max(out))] -= 1
    return out
