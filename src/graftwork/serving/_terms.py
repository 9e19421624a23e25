"""What several groups of rows do to one weight matrix, stacked so that one product serves all.

Shape legend: G groups, weight (out, in), r rank, k sparse entries of all groups together.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from graftwork.deltas import Update, values_of

Weighted = Sequence[tuple[Update, float]]
"""Updates of one parameter with their weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """Sparse matrices `(out, in)` of G groups under each other, in compressed rows.

    On a CPU they are one block-diagonal matrix `(G * out, G * in)`, which one product runs. On a
    GPU, groups that all have the same positions hold them once.

    Attributes:
        crow: `(G * out + 1,)` int32; `(out + 1,)` where `shared`.
        cols: `(k,)` int32, in [0, in), or on a CPU in [g * in, (g + 1) * in) for group g;
            `(k / G,)` where `shared`.
        values: `(k,)` float32 or float64, group after group.
        shape: (G, out, in).
        block: the block-diagonal matrix, on the tensors above; None on a GPU.
        shared: whether all groups have the same positions, which are held once.
    """

    crow: Tensor
    cols: Tensor
    values: Tensor
    shape: tuple[int, int, int]
    block: Tensor | None
    shared: bool = False

    @classmethod
    def of(cls, parts: Sequence[tuple[Tensor, Tensor, Tensor]], inner: int) -> Sparse:
        """Stack one (crow, cols, values) a group."""
        groups, out = len(parts), parts[0][0].numel() - 1
        ends = torch.tensor([part[0][-1] for part in parts]).cumsum(0)
        starts = [0, *ends.tolist()][:-1]
        crow = torch.cat(
            [parts[0][0][:1], *(p[0][1:] + start for p, start in zip(parts, starts, strict=True))]
        )
        cols, values = (torch.cat([part[i] for part in parts]) for i in (1, 2))
        if cols.is_cuda:
            if groups > 1 and _one_support(parts):
                return cls(*parts[0][:2], values, (groups, out, inner), None, shared=True)
            return cls(crow, cols, values, (groups, out, inner), None)
        for group, (start, end) in enumerate(pairwise([*starts, len(cols)])):
            cols[start:end] += group * inner
        block = csr(crow, cols, values, (groups * out, groups * inner))
        return cls(crow, cols, values, (groups, out, inner), block)

    def group(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return crow `(out + 1,)`, cols in [0, in) and values of one group."""
        groups, out, inner = self.shape
        if self.shared:
            return self.crow, self.cols, self.values.view(groups, -1)[index]
        crow = self.crow[index * out : (index + 1) * out + 1]
        start, end = int(crow[0]), int(crow[-1])
        cols = self.cols[start:end]
        return (
            crow - start,
            cols if self.block is None else cols - index * inner,
            self.values[start:end],
        )

    def starts(self, rows: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the entries of rows `(n,)` of groups `(n,)` start and end in `values`."""
        if self.shared:
            before = groups * self.cols.numel()
            return before + self.crow[rows].long(), before + self.crow[rows + 1].long()
        rows = rows + groups * self.shape[1]
        return self.crow[rows].long(), self.crow[rows + 1].long()

    def columns(self, entries: Tensor, groups: Tensor) -> Tensor:
        """Return the columns in [0, in) of entries `(n,)` of groups `(n,)`."""
        if self.shared:
            return self.cols[entries - groups * self.cols.numel()]
        cols = self.cols[entries]
        return cols if self.block is None else cols - groups * self.shape[2]


def _one_support(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> bool:
    crow, cols, _ = parts[0]
    return all(torch.equal(part[0], crow) and torch.equal(part[1], cols) for part in parts[1:])


@dataclass(frozen=True, slots=True, eq=False)
class Matrices:
    """What G groups do to one weight `(out, in)`; what none does is None.

    Attributes:
        sparse: added entries.
        counts: sparse entries of each group.
        right: `(G, r, in)`, ranks padded with zeros.
        left: `(G, out, r)`.
        out_scale: `(G, out)`, multiplies the base's product.
        in_scale: `(G, in)`, multiplies the input of the base's product.
        whole: groups whose weight must be written out, with their updates.
    """

    sparse: Sparse | None
    counts: tuple[int, ...]
    right: Tensor | None
    left: Tensor | None
    out_scale: Tensor | None
    in_scale: Tensor | None
    whole: frozenset[int]

    @property
    def bytes(self) -> int:
        """What the tensors take."""
        tensors = [self.right, self.left, self.out_scale, self.in_scale]
        if self.sparse is not None:
            tensors += [self.sparse.crow, self.sparse.cols, self.sparse.values]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """What one group does to one weight `(out, in)`; see `Matrices`."""

    sparse: tuple[Tensor, Tensor, Tensor] | None = None
    right: Tensor | None = None
    left: Tensor | None = None
    out_scale: Tensor | None = None
    in_scale: Tensor | None = None
    whole: bool = False

    @property
    def count(self) -> int:
        """Sparse entries."""
        return 0 if self.sparse is None else self.sparse[1].numel()


def csr(crow: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a compressed-row matrix; torch calls them beta, of which users need not hear."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
        return torch.sparse_csr_tensor(crow, cols, values, shape, check_invariants=False)


def matrix_of(
    updates: Weighted, shape: tuple[int, int], dtype: torch.dtype, *, transposed: bool
) -> Matrix:
    """Return what a weighted list does to a weight, in the orientation (out, in).

    `W + sum_i w_i * (scale_i * (W + U_i) - W)` with scales of one row or column is
    `out_scale * W + sum_i w_i * scale_i * U_i`, and so on; what does not fit that is `whole`.

    Args:
        updates: of the parameter.
        shape: (out, in).
        dtype: type of the sums: float32, or float64 for a base of that.
        transposed: whether the parameter is stored as (in, out).
    """
    out, inner = shape
    scales = [(_scale(update, shape, transposed), weight) for update, weight in updates]
    sides = {side for (side, _), _ in scales}
    if "full" in sides or sides >= {"in", "out"} or any(u.dense is not None for u, _ in updates):
        return Matrix(whole=True)
    base = {"out": torch.ones(out, dtype=dtype), "in": torch.ones(inner, dtype=dtype)}
    entries, rights, lefts = [], [], []
    for (update, weight), ((side, scale), _) in zip(updates, scales, strict=True):
        if side != "none":
            base[side] += weight * (scale.to(dtype) - 1)
        by = {"out": torch.ones(()), "in": torch.ones(()), side: scale.to(dtype)}
        if update.sparse is not None:
            rows, cols, values = _entries(update, shape, dtype, transposed)
            for axis, index in (("out", rows), ("in", cols)):
                values = values * by[axis][index] if by[axis].dim() else values
            entries.append((rows, cols, values * weight))
        if update.low_rank is not None:
            left, right = _factors(update, dtype, transposed)
            lefts.append(left * (weight * update.low_rank.factor) * by["out"].reshape(-1, 1))
            rights.append(right * by["in"])
    return Matrix(
        sparse=_compressed(entries, out) if entries else None,
        right=torch.cat(rights) if rights else None,
        left=torch.cat(lefts, 1) if lefts else None,
        out_scale=base["out"] if "out" in sides else None,
        in_scale=base["in"] if "in" in sides else None,
    )


def _scale(update: Update, shape: tuple[int, int], transposed: bool) -> tuple[str, Tensor]:
    """Return which side of (out, in) a scale is on, and its values."""
    if update.scale is None:
        return "none", torch.ones(())
    values = values_of(update.scale)
    if values.numel() == 1:
        return "out", values.reshape(1).expand(shape[0])
    stored = (1,) * (2 - values.dim()) + tuple(values.shape)
    rows, cols = stored[::-1] if transposed else stored
    if cols == 1:
        return "out", values.reshape(-1)
    if rows == 1:
        return "in", values.reshape(-1)
    return "full", values


def _entries(
    update: Update, shape: tuple[int, int], dtype: torch.dtype, transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    assert update.sparse is not None
    width = shape[0] if transposed else shape[1]
    positions = update.sparse.positions
    rows = positions.div(width, rounding_mode="floor")
    cols = positions - rows * width
    values = values_of(update.sparse.values).to(dtype)
    return (cols, rows, values) if transposed else (rows, cols, values)


def _factors(update: Update, dtype: torch.dtype, transposed: bool) -> tuple[Tensor, Tensor]:
    assert update.low_rank is not None
    left, right = (values_of(f).to(dtype) for f in (update.low_rank.left, update.low_rank.right))
    return (right.T, left.T) if transposed else (left, right)


def _compressed(
    entries: Sequence[tuple[Tensor, Tensor, Tensor]], out: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (crow, cols, values) of entries; those at one place stay apart and are summed."""
    rows, cols, values = (torch.cat(found) for found in zip(*entries, strict=True))
    if (rows[1:] < rows[:-1]).any():
        order = rows.argsort(stable=True)
        rows, cols, values = rows[order], cols[order], values[order]
    crow = torch.zeros(out + 1, dtype=torch.int32)
    crow[1:] = torch.bincount(rows, minlength=out).cumsum(0)
    return crow, cols.int(), values


def stack(parts: Sequence[Matrix], shape: tuple[int, int], like: Tensor) -> Matrices:
    """Stack what each group does to a weight.

    Args:
        parts: one a group.
        shape: (out, in).
        like: gives type and device of the sums.
    """
    out, inner = shape
    counts = tuple(part.count for part in parts)
    return Matrices(
        sparse=_stack_sparse(parts, shape, like) if any(counts) else None,
        counts=counts,
        right=_stack_low(parts, "right", like),
        left=_stack_low(parts, "left", like),
        out_scale=_stack_scales([part.out_scale for part in parts], out, like),
        in_scale=_stack_scales([part.in_scale for part in parts], inner, like),
        whole=frozenset(g for g, part in enumerate(parts) if part.whole),
    )


def _stack_sparse(parts: Sequence[Matrix], shape: tuple[int, int], like: Tensor) -> Sparse:
    empty = (
        torch.zeros(shape[0] + 1, dtype=torch.int32),
        torch.zeros(0, dtype=torch.int32),
        torch.zeros(0, dtype=like.dtype),
    )
    entries = [part.sparse or empty for part in parts]
    moved = [
        (crow.to(like.device), cols.to(like.device), values.to(like))
        for crow, cols, values in entries
    ]
    return Sparse.of(moved, shape[1])


def _stack_low(
    parts: Sequence[Matrix], side: Literal["left", "right"], like: Tensor
) -> Tensor | None:
    factors: list[Tensor | None] = [getattr(part, side) for part in parts]
    first = next((f for f in factors if f is not None), None)
    if first is None:
        return None
    axis = 1 if side == "left" else 0
    rank = max(f.shape[axis] for f in factors if f is not None)
    size = (first.shape[0], rank) if side == "left" else (rank, first.shape[1])
    out = like.new_zeros(len(parts), *size)
    for group, factor in enumerate(factors):
        if factor is not None:
            out[group].narrow(axis, 0, factor.shape[axis]).copy_(factor)
    return out


def _stack_scales(scales: Sequence[Tensor | None], size: int, like: Tensor) -> Tensor | None:
    if all(scale is None for scale in scales):
        return None
    return torch.stack([like.new_ones(size) if s is None else s.to(like) for s in scales])
