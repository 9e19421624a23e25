"""A stream of masked molecules in batches of like lengths.

Shape legend: B rows, L positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork.domains.molecules._masking import Masking
from graftwork.errors import InputError
from graftwork.tasks import Batch, permutation, words

PUBLISHED_BUCKETS = (42, 66, 122)
"""Token counts at which the published buckets begin: < 42, 42-65, 66-121, >= 122."""
BUCKETS = (*range(16, 80, 8), *range(80, 208, 16))
"""Finer ones: of 64 molecules of the HIV set up to 80 tokens, 8.5 % of the positions are padding;
24 % in the published buckets, 50 % without."""


@dataclass(eq=False, kw_only=True)
class MaskedStream:
    """Batches of molecules with hidden tokens, each batch from one bucket of lengths.

    Rows go into buckets by their count of tokens. In each epoch every bucket is shuffled and cut
    into batches of nearly one size, at most `batch_size`, and the batches of all buckets are
    shuffled: every row comes once an epoch, and little of a batch is padding. Batch i, its rows
    and its hidden tokens are a pure function of (seed, name, i).

    The published code draws a batch over all lengths, runs each bucket of it by itself and averages
    their losses. Here an update with `TrainConfig.accumulate` = k mixes k buckets.

    Args:
        smiles: canonical molecules.
        tokenizer: from `smiles_tokenizer`.
        name: the stream's name; part of the key of its draws.
        batch_size: most rows of a batch, over all processes together.
        buckets: token counts, the two ends counted, at which the next bucket begins; () for one
            bucket. A bucket with fewer rows than a batch joins the next.
        masking: which tokens are hidden, and how.
        seed: of order and hidden tokens.

    Raises:
        InputError: no molecules, a batch size below 1, or buckets that do not ascend.
    """

    smiles: Sequence[str]
    tokenizer: Any
    name: str = "train"
    batch_size: int = 64
    buckets: tuple[int, ...] = BUCKETS
    masking: Masking = field(default_factory=Masking)
    seed: int = 0
    digest: str = field(init=False)
    groups: tuple[str, ...] | None = field(init=False, default=None)
    rank: int = field(init=False, default=0)
    world: int = field(init=False, default=1)
    _ids: list[NDArray[np.int64]] = field(init=False, repr=False)
    _rows: list[NDArray[np.int64]] = field(init=False, repr=False)
    _index: int = field(init=False, default=0)
    _plan: tuple[int, list[NDArray[np.int64]]] | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.smiles or self.batch_size < 1:
            raise InputError(
                f"stream {self.name!r}: {len(self.smiles)} molecules in batches of "
                f"{self.batch_size}; give at least one of each"
            )
        if list(self.buckets) != sorted(set(self.buckets)):
            raise InputError(f"buckets {self.buckets} must ascend")
        encoded = self.tokenizer(list(self.smiles), truncation=True, return_attention_mask=False)
        self._ids = [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]
        of_row = np.searchsorted(self.buckets, self.lengths, side="right")
        rows = [np.flatnonzero(of_row == bucket) for bucket in np.unique(of_row)]
        self._rows = _joined(rows, self.batch_size)
        content = hashlib.sha256()
        for ids in self._ids:
            content.update(ids.tobytes())
        self.digest = content.hexdigest()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`(rows,)` tokens of each row, the two ends counted."""
        return np.asarray([len(ids) for ids in self._ids], dtype=np.int64)

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return sum(-(-len(rows) // self.batch_size) for rows in self._rows)

    @property
    def index(self) -> int:
        """Batches drawn so far."""
        return self._index

    def shard(self, rank: int, world: int) -> None:
        """Draw rows rank, rank + world, ... of each batch from now on.

        Raises:
            InputError: some batch has fewer rows than there are processes.
        """
        smallest = min(len(rows) // -(-len(rows) // self.batch_size) for rows in self._rows)
        if smallest < world:
            raise InputError(
                f"stream {self.name!r} has a batch of {smallest} rows, too few for {world} "
                "processes; use larger batches or fewer buckets"
            )
        self.rank, self.world = rank, world

    def seek(self, index: int) -> None:
        """Make batch `index` the next one.

        Raises:
            InputError: it is negative.
        """
        if index < 0:
            raise InputError(f"batch {index} does not exist; the first is 0")
        self._index = index

    def draw(self) -> Batch:
        """Return the next batch: this process's rows of it."""
        epoch, place = divmod(self._index, self.batches)
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._epoch(epoch))
        rows = self._plan[1][place]
        draws = _uniform((3, len(rows), int(self.lengths[rows].max())), self._key("hide"))
        batch = self._batch(rows, draws)
        self._index += 1
        if self.world == 1:
            return batch
        return batch.select(torch.arange(self.rank, len(batch), self.world))

    def once(self, batch_size: int | None = None, *, by_length: bool = False) -> Iterator[Batch]:
        """Iterate once over all rows, in every process alike, without moving the stream.

        What is hidden of a row depends on the row alone, so a measure does not depend on the
        batches.
        """
        size = batch_size or self.batch_size
        order = np.argsort(self.lengths, kind="stable") if by_length else np.arange(len(self))
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            draws = np.zeros((3, len(rows), int(self.lengths[rows].max())))
            for i, row in enumerate(rows):
                count = len(self._ids[row])
                key = (self.seed, self.name, "once", int(row))
                draws[:, i, :count] = _uniform((3, count), key)
            yield self._batch(rows, draws)

    def _key(self, purpose: str) -> tuple[str | int, ...]:
        return (self.seed, self.name, purpose, self._index)

    def _epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the rows of each batch of an epoch, in order."""
        parts: list[NDArray[np.int64]] = []
        for bucket, rows in enumerate(self._rows):
            order = rows[permutation(len(rows), self.seed, self.name, epoch, bucket)]
            parts += np.array_split(order, -(-len(rows) // self.batch_size))
        return [parts[i] for i in permutation(len(parts), self.seed, self.name, epoch, "batches")]

    def _batch(self, rows: NDArray[np.int64], draws: NDArray[np.float64]) -> Batch:
        tokenizer = self.tokenizer
        ids = np.full(draws.shape[1:], tokenizer.pad_token_id, dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(self._ids[row])] = self._ids[row]
        free = ~np.isin(ids, tokenizer.all_special_ids)
        ordinary = (tokenizer.mask_token_id + 1, tokenizer.unk_token_id)
        shown, targets = self.masking.hide(ids, free, draws, tokenizer.mask_token_id, ordinary)
        inputs = {
            "input_ids": torch.from_numpy(shown),
            "attention_mask": torch.from_numpy((ids != tokenizer.pad_token_id).astype(np.int64)),
        }
        return Batch(inputs, torch.from_numpy(targets), torch.from_numpy(rows))

    def state(self) -> dict[str, Tensor]:
        """Return the position, and the content's hash so that changed data cannot go on."""
        content = torch.frombuffer(bytearray(bytes.fromhex(self.digest)), dtype=torch.uint8)
        return {"index": torch.tensor(self._index), "digest": content}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            InputError: other keys, or the molecules changed since.
        """
        if set(state) != {"index", "digest"}:
            raise InputError(f"state of stream {self.name!r} has the keys {sorted(state)}")
        if bytes(state["digest"].tolist()).hex() != self.digest:
            raise InputError(f"the molecules of stream {self.name!r} changed since the checkpoint")
        self.seek(int(state["index"]))


def _joined(buckets: list[NDArray[np.int64]], least: int) -> list[NDArray[np.int64]]:
    """Return neighbouring buckets joined until each has `least` rows, or all in one."""
    out: list[NDArray[np.int64]] = []
    held = np.empty(0, dtype=np.int64)
    for rows in buckets:
        held = np.concatenate((held, rows))
        if len(held) >= least:
            out.append(held)
            held = held[:0]
    if len(held):
        held = np.concatenate((out.pop(), held)) if out else held
        out.append(held)
    return out


def padding_share(lengths: NDArray[np.int64], batches: Sequence[NDArray[np.int64]]) -> float:
    """Return the part of all positions that is padding when `batches` of rows are padded each.

    Example:
        >>> padding_share(np.array([2, 4]), [np.array([0, 1])])
        0.25
    """
    used = sum(int(lengths[rows].sum()) for rows in batches)
    full = sum(int(lengths[rows].max()) * len(rows) for rows in batches)
    return 1 - used / full


def _uniform(shape: tuple[int, ...], key: Sequence[str | int]) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1) that `key` names."""
    drawn = words(int(np.prod(shape)), *key) >> np.uint64(11)
    return np.asarray(drawn.astype(np.float64).reshape(shape) * 2.0**-53)
