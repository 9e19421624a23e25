"""Rows of which each position has a target, and words of which each has a place among the tokens.

Shape legend: N rows of the data, B rows of a batch, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork.objectives import IGNORED
from graftwork.tasks._encoded import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Whole numbers of all rows end to end, each row with as many as it has tokens.

    Attributes:
        flat: `(total,)` int64.
        starts: `(N,)` int64, where each row begins in `flat`.
        sizes: `(N,)` int64.

    Example:
        >>> Ragged.of([[7], [8, 9]])[torch.tensor([1, 0])].tolist()
        [[8, 9], [7, -100]]
    """

    flat: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | NDArray[np.int64]]) -> Ragged:
        """Return the numbers of the given rows."""
        sizes = np.asarray([len(row) for row in rows], dtype=np.int64)
        parts = [np.asarray(row, dtype=np.int64) for row in rows]
        flat = np.concatenate([*parts, np.zeros(0, dtype=np.int64)])
        return cls(flat, np.cumsum(sizes) - sizes, sizes)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return `(B, L)` int64 of the given rows; `IGNORED` after the end of each."""
        index = rows.numpy()
        sizes = self.sizes[index]
        positions = np.arange(max(int(sizes.max()), 1))
        inside = positions < sizes[:, None]
        out = np.full(inside.shape, IGNORED, dtype=np.int64)
        out[inside] = self.flat[(self.starts[index][:, None] + positions)[inside]]
        return torch.from_numpy(out)

    def row(self, number: int) -> NDArray[np.int64]:
        """Return the numbers of one row."""
        start = self.starts[number]
        return self.flat[start : start + self.sizes[number]]


@dataclass(frozen=True, slots=True, eq=False)
class WordTokens:
    """Tokens of rows of words.

    Attributes:
        tokens: of all rows.
        places: for each word of a row, the position of its first token; -1 where no token is left
            of it, since the row was cut or the tokenizer makes nothing of it.
    """

    tokens: Tokens
    places: Ragged

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`(N,)` tokens of each row."""
        return self.tokens.lengths

    @property
    def cut(self) -> int:
        """Words without a token."""
        return int((self.places.flat < 0).sum())

    def collate(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return ids padded on the right to the longest row of the batch, and the mask."""
        return self.tokens.collate(rows)
