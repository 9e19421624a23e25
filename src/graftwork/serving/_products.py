"""Products of positions with the matrices of their groups, by the path that is fastest there.

Positions of a group stand together: group g has those of `bounds[g]` to `bounds[g + 1]`. What comes
before the first or after the last bound belongs to no group.

Shape legend: n positions, G groups, weight (out, in), r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from graftwork.serving._terms import Matrices, Sparse, csr

Path = Literal["block", "each", "scratch", "triton"]
"""How sparse entries are applied: one block-diagonal product, a product a group, a weight that is
written out for each group in turn, or a kernel of its own."""
Bounds = Sequence[int]

SCRATCH_FROM = 192
"""Mean positions of a group from which writing out its weight is faster than sparse products."""
BLOCK_TO = 64
"""Most positions of a group at which one block-diagonal product is faster than one a group: beyond,
its two sides leave the cache. Both measured on two cores at 0.5 % (benchmarks/mixed_encoder.py)."""
PADDED = 2.0
"""Most positions that a block-diagonal product may compute for each one that is wanted."""


def choose(sparse: Sparse, counts: Sequence[int], bounds: Bounds, *, scratch: bool = True) -> Path:
    """Return the path for a batch: what it does is the same, but for rounding.

    Args:
        sparse: the entries.
        counts: entries of each group.
        bounds: `(G + 1,)` of positions.
        scratch: whether weights may be written out here.
    """
    if sparse.cols.is_cuda and sparse.values.dtype == torch.float32 and _has_triton():
        return "triton"
    sizes = [bounds[g + 1] - bounds[g] for g, count in enumerate(counts) if count]
    sizes = [size for size in sizes if size]
    if scratch and sizes and sum(sizes) >= SCRATCH_FROM * len(sizes):
        return "scratch"
    most = max((b - a for a, b in pairwise(bounds)), default=0)
    wasteful = most * len(counts) > PADDED * sum(sizes)
    return "each" if sparse.block is None or most > BLOCK_TO or wasteful else "block"


def add_sparse(y: Tensor, x: Tensor, sparse: Sparse, bounds: Bounds, path: Path) -> None:
    """Add to `y` `(n, out)`, in place, each position's own sparse product with `x` `(n, in)`."""
    _SPARSE[path](y, x, sparse, bounds)


def _block(y: Tensor, x: Tensor, sparse: Sparse, bounds: Bounds) -> None:
    """One product for all groups, of as many positions each as the largest has."""
    groups, out, inner = sparse.shape
    start, end = bounds[0], bounds[-1]
    sizes = [b - a for a, b in pairwise(bounds)]
    most = max(sizes)
    values = x[start:end].to(sparse.values.dtype)
    place = None if min(sizes) == most else _places(sizes, most, x.device)
    if place is not None:
        padded = values.new_zeros(groups * most, inner)
        padded[place] = values
        values = padded
    right = values.view(groups, most, inner).transpose(1, 2).reshape(groups * inner, most)
    assert sparse.block is not None
    found = (sparse.block @ right).view(groups, out, most).transpose(1, 2)
    if place is None:
        y[start:end].view(groups, most, out).add_(found)
    else:
        y[start:end].add_(found.reshape(groups * most, out)[place])


def _places(sizes: Sequence[int], most: int, device: torch.device) -> Tensor:
    """Return where each position stands when every group has room for `most`."""
    count = torch.tensor(sizes)
    starts = torch.arange(len(sizes)) * most - (count.cumsum(0) - count)
    return (torch.arange(int(count.sum())) + starts.repeat_interleave(count)).to(device)


def _each(y: Tensor, x: Tensor, sparse: Sparse, bounds: Bounds) -> None:
    _, out, inner = sparse.shape
    for g, (start, end) in enumerate(pairwise(bounds)):
        crow, cols, values = sparse.group(g)
        if end > start and values.numel():
            matrix = csr(crow, cols, values, (out, inner))
            y[start:end].add_((matrix @ x[start:end].to(values.dtype).T).T)


def _triton(y: Tensor, x: Tensor, sparse: Sparse, bounds: Bounds) -> None:
    from graftwork.serving import _triton as kernels  # imports triton, which CPUs lack

    ends = torch.tensor(bounds, dtype=torch.int32, device=x.device)
    if sparse.shared:
        values = sparse.values.view(sparse.shape[0], -1)
        kernels.add_shared_sparse(y, x, ends, sparse.crow, sparse.cols, values)
    else:
        kernels.add_sparse(y, x, ends, sparse.crow, sparse.cols, sparse.values)


_SPARSE: Mapping[Path, Callable[[Tensor, Tensor, Sparse, Bounds], None]] = {
    "block": _block,
    "each": _each,
    "triton": _triton,
}


def scratch_product(
    x: Tensor, weight: Tensor, sparse: Sparse, bounds: Bounds, *, transposed: bool
) -> Tensor:
    """Return each position's product with the weight of its group.

    One copy of the weight is made; the entries of one group after the other are added to it, and
    taken back to the base's own values.

    Args:
        x: `(n, in)`.
        weight: `(out, in)`, or `(in, out)` where `transposed`; not changed.
        sparse: entries of each group.
        bounds: of positions.
        transposed: how the weight is stored.
    """
    _, out, inner = sparse.shape
    y = x.new_empty(len(x), out)
    work = weight.detach().clone(memory_format=torch.contiguous_format)
    source, flat = weight.detach().reshape(-1), work.view(-1)
    matrix = work if transposed else work.T
    done = 0
    for g, (start, end) in enumerate(pairwise(bounds)):
        crow, cols, values = sparse.group(g)
        if end == start or not values.numel():
            continue
        if start > done:
            torch.mm(x[done:start], matrix, out=y[done:start])
        rows = torch.arange(out, device=x.device).repeat_interleave(crow.diff())
        places = cols.long() * out + rows if transposed else rows * inner + cols
        flat.index_add_(0, places, values.to(flat.dtype))
        torch.mm(x[start:end], matrix, out=y[start:end])
        flat[places] = source[places]
        done = end
    if done < len(x):
        torch.mm(x[done:], matrix, out=y[done:])
    return y


def add_low_rank(y: Tensor, x: Tensor, matrices: Matrices, bounds: Bounds) -> None:
    """Add to `y` `(n, out)`, in place, each position's own low-rank product with `x` `(n, in)`."""
    right, left = matrices.right, matrices.left
    if right is None or left is None:
        return
    if y.is_cuda and right.dtype == torch.float32 and _has_triton():
        from graftwork.serving import _triton as kernels

        ends = torch.tensor(bounds, dtype=torch.int32, device=y.device)
        kernels.add_low_rank(y, x, ends, right, left)
        return
    sizes = {b - a for a, b in pairwise(bounds)}
    if len(sizes) == 1:
        part = slice(bounds[0], bounds[-1])
        groups = len(right)
        rows = x[part].view(groups, -1, x.shape[1]).to(right.dtype)
        added = (rows @ right.transpose(1, 2)) @ left.transpose(1, 2)
        y[part].add_(added.view(-1, y.shape[1]))
        return
    for g, (start, end) in enumerate(pairwise(bounds)):
        if end > start:
            rows = x[start:end].to(right.dtype)
            y[start:end].add_((rows @ right[g].T) @ left[g].T)


def _has_triton() -> bool:
    import importlib.util

    return importlib.util.find_spec("triton") is not None
