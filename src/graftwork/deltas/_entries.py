"""Differences of a tensor, a block of rows at a time, so that no more than one block is in memory.

Shape legend: W has `shape`, seen as R rows `shape[0]` of C entries; a vector has rows of one entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from graftwork._errors import DeltaError
from graftwork.deltas._delta import BaseLike
from graftwork.deltas._terms import INT8_BLOCK, Int8Blocks, Sparse, Stored, Update, values_of

BLOCK = 2**17
"""Entries of a block: 1 MiB of float64 a delta. DARE's draws depend on it, so it is fixed."""


def blocks_of(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the first row of each block of rows of a tensor, and the one after its last."""
    rows, columns = matrix_shape(shape)
    step = max(1, BLOCK // max(columns, 1))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (R, C): the rows of a tensor and the entries of one."""
    rows = shape[0] if shape else 1
    return rows, math.prod(shape) // max(rows, 1)


def difference_of(update: Update, rows: tuple[int, int], weight: Tensor | None = None) -> Tensor:
    """Return `adapted(W) - W` of a block of rows, flat, float64.

    Args:
        update: of the tensor.
        rows: first row, and the one after the last.
        weight: these rows of W `(rows, C)`; needed where the update has a scale.

    Raises:
        DeltaError: the update has a scale and no weight is given.
    """
    _, columns = matrix_shape(update.shape)
    start, stop = rows[0] * columns, rows[1] * columns
    out = torch.zeros(stop - start, dtype=torch.float64)
    if update.sparse is not None:
        positions = update.sparse.positions
        ends = torch.searchsorted(positions, torch.tensor([start, stop]))
        inside = slice(int(ends[0]), int(ends[1]))
        out[positions[inside] - start] += _part(update.sparse.values, inside.start, inside.stop)
    if update.low_rank is not None:
        term = update.low_rank
        left = values_of(term.left)[rows[0] : rows[1]].double()
        right = values_of(term.right)[rows[0] : rows[1]] if term.batched else values_of(term.right)
        out += (left @ right.double()).reshape(-1) * term.factor
    if update.dense is not None:
        out += _part(update.dense, start, stop)
    if update.scale is not None:
        out = _scaled(update, rows, out, weight)
    return out


def values_at(term: Sparse, positions: Tensor) -> Tensor:
    """Return what a sparse term adds at sorted `positions`, float64; 0 where it adds nothing."""
    out = torch.zeros(positions.numel(), dtype=torch.float64)
    if not positions.numel():
        return out
    ends = torch.searchsorted(term.positions, positions[[0, -1]] + torch.tensor([0, 1]))
    inside = slice(int(ends[0]), int(ends[1]))
    mine = term.positions[inside]
    places = torch.searchsorted(positions, mine)
    found = positions[places] == mine
    out[places[found]] = _part(term.values, inside.start, inside.stop)[found]
    return out


def weight_rows(base: BaseLike | None, name: str, rows: tuple[int, int]) -> Tensor | None:
    """Return a block of rows of the base's tensor `(rows, C)`, float64; None without a base."""
    if base is None:
        return None
    piece = base.names[name]
    weight = piece.of(base.model.get_parameter(piece.parameter).detach())
    count, columns = matrix_shape(piece.shape)
    return weight.reshape(count, columns)[rows[0] : rows[1]].cpu().double()


def _scaled(
    update: Update, rows: tuple[int, int], difference: Tensor, weight: Tensor | None
) -> Tensor:
    if update.scale is None:
        return difference
    if weight is None:
        raise DeltaError("a scale term is no difference without the base's values: name the base")
    count, columns = matrix_shape(update.shape)
    scale = values_of(update.scale).expand(update.shape).reshape(count, columns)
    before = weight.reshape(-1)
    return scale[rows[0] : rows[1]].reshape(-1).double() * (before + difference) - before


def _part(stored: Stored, start: int, stop: int) -> Tensor:
    """Return the flat values [start, stop) in float64, without widening the other ones."""
    if isinstance(stored, Int8Blocks):
        scales = stored.scales[torch.arange(start, stop) // INT8_BLOCK].double()
        return stored.codes[start:stop].double() * scales
    return stored.reshape(-1)[start:stop].cpu().double()
