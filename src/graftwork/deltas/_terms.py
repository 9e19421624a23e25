"""The one equation's terms: `W' = scale * (W + sparse + low_rank + dense)`, each term optional.

Shape legend: W has `shape`, n = numel. Positions are flat, row-major, over that shape. Values are
kept in the type they are stored in (`Stored`), so what is measured is what is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import DeltaError

INT8_BLOCK = 256
"""Values that share one bfloat16 scale in 8-bit storage: 0.008 bytes a value."""


@dataclass(frozen=True, slots=True, eq=False)
class Int8Blocks:
    """Values rounded to 8 bits, in flat blocks of `INT8_BLOCK` that share one scale.

    Attributes:
        codes: `(n,)` int8 in [-127, 127].
        scales: `(ceil(n / 256),)` bfloat16, finite, not negative; value = code * scale.
        shape: the shape of the values.
    """

    codes: Tensor
    scales: Tensor
    shape: tuple[int, ...]

    def dequantise(self) -> Tensor:
        """Return the values, float32 of `shape`."""
        per_value = self.scales.float().repeat_interleave(INT8_BLOCK)[: self.codes.numel()]
        return (self.codes.float() * per_value).reshape(self.shape)


Stored = Tensor | Int8Blocks
"""A tensor in its stored type: float16 (default), bfloat16, float32, float64 or 8-bit blocks."""


def values_of(stored: Stored) -> Tensor:
    """Return the numbers behind `stored`: float32, or float64 where that is the stored type."""
    if isinstance(stored, Int8Blocks):
        return stored.dequantise()
    return stored if stored.dtype == torch.float64 else stored.float()


@dataclass(frozen=True, slots=True)
class SeededMask:
    """Positions drawn by the pinned generator of `_seeded.py` instead of being stored.

    Attributes:
        seed: the user's seed; the stream is keyed by (seed, `key`).
        key: the canonical name the positions were drawn for (kept so that a rename is harmless).
        version: version of the generator; another version is an error, never a guess.
    """

    seed: int
    key: str
    version: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A few changed entries.

    Attributes:
        positions: `(k,)` int64, strictly increasing.
        values: `(k,)` stored values, added to W at `positions`.
        mask: set when the positions come from a seed; the file then stores no positions.
    """

    positions: Tensor
    values: Stored
    mask: SeededMask | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """A product added to W seen as a matrix `(shape[0], n / shape[0])`, or a batch of products.

    A batch is for tensors that stack matrices, such as experts `(E, in, out)`: W is seen as
    `(E, m, k)` with E = shape[0], m = shape[1], and each of the E matrices gets its own product.

    Attributes:
        left: `(shape[0], r)` stored values, or `(E, m, r)`.
        right: `(r, n / shape[0])` stored values, or `(E, r, k)`.
        factor: multiplies the product (LoRA's alpha / r).
    """

    left: Stored
    right: Stored
    factor: float = 1.0

    @property
    def rank(self) -> int:
        """Columns of the left factor."""
        return int(self.left.shape[-1])

    @property
    def batched(self) -> bool:
        """Whether each matrix of a stack has a product of its own."""
        return len(self.left.shape) == 3


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What a delta does to one parameter.

    Attributes:
        shape: shape of the parameter.
        sparse: changed entries.
        low_rank: an added product.
        dense: stored values of the parameter's shape, added.
        scale: stored values that broadcast to the parameter's shape and multiply the sum.
    """

    shape: tuple[int, ...]
    sparse: Sparse | None = None
    low_rank: LowRank | None = None
    dense: Stored | None = None
    scale: Stored | None = None

    def __post_init__(self) -> None:
        if not any((self.sparse, self.low_rank, self.dense is not None, self.scale is not None)):
            raise DeltaError("an update needs at least one term (sparse, low_rank, dense, scale)")

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms present, in the equation's order."""
        names = ("sparse", "low_rank", "dense", "scale")
        return tuple(n for n in names if getattr(self, n) is not None)

    def adapted(self, weight: Tensor) -> Tensor:
        """Return `W'` for `weight` of `shape`, in float32 (float64 when `weight` is float64).

        `weight` is not changed. This is the reference definition that every faster path meets.
        """
        compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
        out = weight.detach().to(compute, copy=True).contiguous()
        if self.sparse is not None:
            values = values_of(self.sparse.values).to(compute).to(out.device)
            out.view(-1).index_add_(0, self.sparse.positions.to(out.device), values)
        if self.low_rank is not None:
            left, right = (
                values_of(f).to(out.device, compute)
                for f in (self.low_rank.left, self.low_rank.right)
            )
            out += (left @ right).mul_(self.low_rank.factor).reshape(self.shape)
        if self.dense is not None:
            out += values_of(self.dense).to(out.device, compute)
        if self.scale is not None:
            out *= values_of(self.scale).to(out.device, compute)
        return out


@dataclass(frozen=True, slots=True, eq=False)
class Port:
    """A module that a delta adds at a named place.

    Attributes:
        kind: a key of the table in `_ports.py`: "head", "prompt", "bottleneck" or "input".
        config: JSON arguments that rebuild the module.
        tensors: state dict of the module, stored values.
    """

    kind: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
