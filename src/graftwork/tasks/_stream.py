"""Streams: named, hashed, seekable sources of batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork._batch import Batch
from graftwork._errors import InputError, UnsupportedError
from graftwork.tasks._call_spec import TaskBase
from graftwork.tasks._encoded import Encoded
from graftwork.tasks._learn import encode_rows
from graftwork.tasks._pinned import permutation
from graftwork.tasks._sequences import Ragged
from graftwork.tasks._signature import Signature
from graftwork.tasks._table import Table
from graftwork.tasks._targets import label_column


@runtime_checkable
class Stateful(Protocol):
    """What can be saved and restored as tensors."""

    def state(self) -> dict[str, Tensor]:
        """Return all state by name."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""


@runtime_checkable
class Sharded(Protocol):
    """What can be parted among processes."""

    def shard(self, rank: int, world: int) -> None:
        """Draw rows rank, rank + world, ... of each batch from now on."""


@runtime_checkable
class Stream(Stateful, Protocol):
    """A source of batches. `draw` depends only on the state, so a run resumes at any batch."""

    @property
    def name(self) -> str:
        """Its name in the task, e.g. "train"."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of its content."""

    @property
    def groups(self) -> tuple[str, ...] | None:
        """Group of each row, for metrics by group; None for no groups."""

    def draw(self) -> Batch:
        """Return the next batch: this process's rows of it."""

    def once(self, batch_size: int | None = None, *, by_length: bool = False) -> Iterator[Batch]:
        """Iterate once over all rows, in every process alike, without moving the stream."""


@dataclass(eq=False, kw_only=True)
class TableStream:
    """Batches of a table's rows, encoded once and padded per batch.

    Batch i is rows i * batch_size to (i + 1) * batch_size - 1 of the epochs laid end to end, so
    every batch is full, every row comes equally often, and `draw` is a pure function of (seed,
    name, i). Each epoch has its own permutation (`_pinned.py`), keyed by (seed, name, epoch).

    Args:
        table: the rows.
        signature: which columns are read, and how.
        base: gives the tokenizer.
        name: the stream's name; part of the key of its permutations.
        batch_size: rows of a batch over all processes together.
        seed: of the order.
        shuffle: False keeps the table's order in every epoch.
        rank: this process; it gets rows rank, rank + world, ... of each batch.
        world: number of processes.
        group: column whose values part the rows for metrics by group; None for no groups.
        together: column; neighbouring rows with equal values stay neighbours when the order is
            drawn, so that contrast pairs share a batch and what they have in common cancels in
            the gradient. None draws rows one by one.

    Raises:
        InputError: no rows, missing or unknown labels, bad values, a batch smaller than `world`.
    """

    table: Table
    signature: Signature
    base: TaskBase
    name: str = "train"
    batch_size: int = 32
    seed: int = 0
    shuffle: bool = True
    rank: int = 0
    world: int = 1
    group: str | None = None
    together: str | None = None
    digest: str = field(init=False)
    groups: tuple[str, ...] | None = field(init=False, default=None)
    """Group of each row, where a group column is named."""
    cut: int = field(init=False)
    """Words or tokens left out of rows that are longer than the signature's `max_length`."""
    _encoded: Encoded = field(init=False, repr=False)
    _targets: Tensor | Ragged | None = field(init=False, repr=False)
    _index: int = field(init=False, default=0)
    _orders: dict[int, NDArray[np.int64]] = field(init=False, default_factory=dict, repr=False)
    _blocks: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.shard(self.rank, self.world)
        rows = encode_rows(self.signature, self.base, self.table)
        self._encoded, self._targets, self.cut = rows.encoded, rows.targets, rows.cut
        self.digest = self.table.digest
        self._blocks = _blocks(self.table, self.together)
        if self.group is not None:
            self.groups = tuple(label_column(self.table, self.group))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.table)

    @property
    def index(self) -> int:
        """Batches drawn so far."""
        return self._index

    def shard(self, rank: int, world: int) -> None:
        """Draw rows rank, rank + world, ... of each batch from now on.

        Raises:
            InputError: no such process, or a batch has fewer rows than there are processes.
        """
        _check_rank(rank, world)
        if self.batch_size < world:
            raise InputError(
                f"batch_size {self.batch_size} gives some of {world} processes no rows; "
                f"use {world} or more"
            )
        self.rank, self.world = rank, world

    def seek(self, index: int) -> None:
        """Make batch `index` the next one; costs the same wherever it is."""
        if index < 0:
            raise InputError(f"batch {index} does not exist; the first is 0")
        self._index = index

    def draw(self) -> Batch:
        """Return the next batch: rows `rank::world` of it."""
        first = self._index * self.batch_size
        places = np.arange(first, first + self.batch_size)[self.rank :: self.world]
        epochs, offsets = np.divmod(places, len(self))
        rows = np.empty(len(places), dtype=np.int64)
        wanted = np.unique(epochs)
        for epoch in wanted:
            here = epochs == epoch
            rows[here] = self._order(int(epoch))[offsets[here]]
        self._orders = {epoch: self._orders[epoch] for epoch in map(int, wanted)}
        self._index += 1
        return self._batch(rows)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            rank = self._blocks
            if self.shuffle:
                drawn = permutation(int(rank[-1]) + 1, self.seed, self.name, epoch)
                rank = np.argsort(drawn)[rank]
            self._orders[epoch] = np.argsort(rank, kind="stable")
        return self._orders[epoch]

    def once(self, batch_size: int | None = None, *, by_length: bool = False) -> Iterator[Batch]:
        """Iterate once over all rows, in every process alike, without moving the stream.

        Args:
            batch_size: rows of a batch; the stream's own when None. The last may be smaller.
            by_length: False goes in the table's order; True in order of length, which pads less.
                `Batch.rows` says which rows they are.
        """
        size = batch_size or self.batch_size
        order = np.arange(len(self))
        if by_length:
            order = np.argsort(self._encoded.lengths, kind="stable")
        for first in range(0, len(order), size):
            yield self._batch(order[first : first + size])

    def _batch(self, rows: NDArray[np.int64]) -> Batch:
        index = torch.from_numpy(rows)
        targets = None if self._targets is None else self._targets[index]
        return Batch(self._encoded.collate(rows), targets, index)

    def state(self) -> dict[str, Tensor]:
        """Return the position, and the content's hash so that changed data cannot go on."""
        content = torch.frombuffer(bytearray(bytes.fromhex(self.digest)), dtype=torch.uint8)
        return {"index": torch.tensor(self._index), "digest": content}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            InputError: other keys, or the data changed since.
        """
        _check_keys(self.name, state, {"index", "digest"})
        saved = bytes(state["digest"].tolist()).hex()
        if saved != self.digest:
            raise InputError(
                f"the data of stream {self.name!r} changed since the checkpoint: digest "
                f"{self.digest[:12]} is not {saved[:12]}; restore the data or start anew"
            )
        self.seek(int(state["index"]))


@dataclass(eq=False, kw_only=True)
class GeneratorStream:
    """Batches made by a function: a simulator, a collector, a replay buffer.

    Args:
        make: index of the batch -> the global batch. Without `memory` it must be a pure function.
        name: the stream's name.
        digest: what identifies the content, e.g. a hash of the generator's configuration.
        memory: what `make` reads beside the index (a replay buffer); its tensors join the state.
        count: batches that `once` goes through, for evaluation; 0: it cannot be evaluated on.
        rank: this process; it gets rows rank, rank + world, ... of each batch.
        world: number of processes.

    Example:
        >>> from graftwork._batch import Batch
        >>> def make(index: int) -> Batch:
        ...     x = torch.arange(4.0) + index
        ...     return Batch({"x": x}, targets=2 * x, rows=torch.arange(4))
        >>> stream = GeneratorStream(make=make, name="train", digest="doubling-v1")
        >>> stream.draw().inputs["x"].tolist(), stream.draw().inputs["x"].tolist()
        ([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    """

    make: Callable[[int], Batch]
    name: str
    digest: str
    memory: Stateful | None = None
    count: int = 0
    rank: int = 0
    world: int = 1
    groups: tuple[str, ...] | None = field(init=False, default=None)
    _index: int = field(init=False, default=0)

    @property
    def index(self) -> int:
        """Batches drawn so far."""
        return self._index

    def shard(self, rank: int, world: int) -> None:
        """Draw rows rank, rank + world, ... of each batch from now on."""
        _check_rank(rank, world)
        self.rank, self.world = rank, world

    def seek(self, index: int) -> None:
        """Make batch `index` the next one; `memory` stays as it is."""
        self._index = index

    def draw(self) -> Batch:
        """Return the next batch: rows `rank::world` of it."""
        batch = self.make(self._index)
        self._index += 1
        if self.world == 1:
            return batch
        return batch.select(torch.arange(self.rank, len(batch), self.world))

    def once(self, batch_size: int | None = None, *, by_length: bool = False) -> Iterator[Batch]:
        """Iterate over the first `count` batches as `make` gives them.

        Raises:
            InputError: `count` is 0.
        """
        del batch_size, by_length
        if not self.count:
            raise InputError(f"stream {self.name!r} has no end; give `count` to evaluate on it")
        yield from map(self.make, range(self.count))

    def state(self) -> dict[str, Tensor]:
        """Return the position and the memory's tensors."""
        inner = {} if self.memory is None else self.memory.state()
        return {"index": torch.tensor(self._index)} | {f"memory.{k}": v for k, v in inner.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            InputError: keys of a stream with another memory.
        """
        own: set[str] = set(self.state())
        _check_keys(self.name, state, own)
        self._index = int(state["index"])
        if self.memory is not None:
            self.memory.load_state(
                {k.removeprefix("memory."): v for k, v in state.items() if k != "index"}
            )


def shard(streams: Mapping[str, Stream], rank: int, world: int) -> None:
    """Part all streams among `world` processes; this one, `rank`, draws its rows from now on.

    Raises:
        UnsupportedError: a stream of several processes that has no `shard`.
    """
    for name, stream in streams.items():
        if isinstance(stream, Sharded):
            stream.shard(rank, world)
        elif world > 1:
            raise UnsupportedError(
                f"stream {name!r} cannot be parted among {world} processes; give its class a "
                "method `shard(rank, world)`"
            )


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise InputError(f"rank {rank} is not one of {world} processes")


def _blocks(table: Table, together: str | None) -> NDArray[np.int64]:
    """Return `(rows,)` number of the block of each row, 0, 0, 1, ...; each row its own if None."""
    if together is None:
        return np.arange(len(table))
    values = list(table[together])
    changes = [a != b for a, b in itertools.pairwise(values)]
    return np.concatenate([[0], np.cumsum(changes, dtype=np.int64)]).astype(np.int64)


def _check_keys(name: str, state: Mapping[str, Any], wanted: set[str]) -> None:
    if set(state) != wanted:
        raise InputError(
            f"state of stream {name!r} has the keys {sorted(state)}, not {sorted(wanted)}"
        )
