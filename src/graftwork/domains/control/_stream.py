"""Batches of logged transitions, drawn with replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork.domains.control._data import OfflineDataset
from graftwork.errors import InputError
from graftwork.tasks import Batch
from graftwork.training import derive


@dataclass(eq=False, kw_only=True)
class ReplayStream:
    """Uniform batches of a log. Batch i is a pure function of (data, seed, name, i).

    Inputs of a batch: "x" `(B, O)` observations, "actions" `(B, A)`, "rewards" `(B,)`, "next"
    `(B, O)` next observations, "terminals" `(B,)`. There are no targets. Rows are drawn from raw
    words of the Philox generator, which NumPy guarantees.

    Args:
        data: the transitions.
        batch_size: rows of a batch over all processes together.
        seed: of the draws.
        name: the stream's name; part of the key of its draws.
        rank: this process; it gets rows rank, rank + world, ... of each batch.
        world: number of processes.

    Raises:
        InputError: a batch smaller than the number of processes.
    """

    data: OfflineDataset
    batch_size: int = 256
    seed: int = 0
    name: str = "train"
    rank: int = 0
    world: int = 1
    groups: tuple[str, ...] | None = field(init=False, default=None)
    """No groups."""
    index: int = field(init=False, default=0)
    """Batches drawn so far."""
    _tensors: dict[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.world <= self.batch_size:
            raise InputError(f"batch_size {self.batch_size} is less than {self.world} processes")
        data = self.data
        arrays = {
            "x": data.observations,
            "actions": data.actions,
            "rewards": data.rewards,
            "next": data.next_observations,
            "terminals": data.terminals,
        }
        self._tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def __len__(self) -> int:
        """Return the number of transitions."""
        return len(self.data)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the data."""
        return self.data.digest

    def shard(self, rank: int, world: int) -> None:
        """Draw rows rank, rank + world, ... of each batch from now on."""
        self.rank, self.world = rank, world

    def draw(self) -> Batch:
        """Return the next batch: rows `rank::world` of it."""
        key = derive(self.seed, "replay", self.name, self.index)
        words = np.random.Philox(key=key).random_raw(self.batch_size)
        fractions = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        rows = np.floor(fractions * len(self)).astype(np.int64)
        self.index += 1
        return self._batch(rows[self.rank :: self.world])

    def once(self, batch_size: int | None = None, *, by_length: bool = False) -> Iterator[Batch]:
        """Iterate once over all rows in their order, in every process alike."""
        del by_length  # all rows are of one length
        size = batch_size or self.batch_size
        for first in range(0, len(self), size):
            yield self._batch(np.arange(first, min(first + size, len(self))))

    def _batch(self, rows: NDArray[np.int64]) -> Batch:
        index = torch.from_numpy(rows)
        return Batch({name: t[index] for name, t in self._tensors.items()}, None, index)

    def state(self) -> dict[str, Tensor]:
        """Return the position and the data's digest."""
        content = torch.frombuffer(bytearray(bytes.fromhex(self.digest)), dtype=torch.uint8)
        return {"index": torch.tensor(self.index), "digest": content}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            InputError: other keys, or the data changed since.
        """
        if set(state) != {"index", "digest"}:
            raise InputError(f"state of stream {self.name!r} has the keys {sorted(state)}")
        saved = bytes(state["digest"].tolist()).hex()
        if saved != self.digest:
            raise InputError(
                f"the data of stream {self.name!r} changed since the checkpoint: digest "
                f"{self.digest[:12]} is not {saved[:12]}; restore the data or start anew"
            )
        self.index = int(state["index"])
