"""The best term for a matrix of differences: sparse or dense by bytes, or low-rank by SVD."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graftwork.deltas._codec import entropy_bits
from graftwork.deltas._entries import matrix_shape
from graftwork.deltas._quantise import quantise
from graftwork.deltas._terms import LowRank, Sparse, Update, values_of

VALUE_BITS = {"int8": 8, "float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
"""Bits of a value by stored type."""


def entries_update(
    difference: Tensor, shape: tuple[int, ...], stored: str, support: Tensor | None = None
) -> Update | None:
    """Return the sparse or dense update that takes fewer bytes; None where nothing differs.

    Args:
        difference: flat, of the tensor or of its entries at `support`.
        shape: of the tensor.
        stored: type of the values.
        support: sorted positions of the given entries, the others being 0; None: all.
    """
    chosen = difference.nonzero()[:, 0]
    count, numel = chosen.numel(), math.prod(shape)
    if not count:
        return None
    if (numel - count) * VALUE_BITS[stored] <= entropy_bits(numel, count):
        flat = difference
        if support is not None:
            flat = difference.new_zeros(numel).index_put_((support,), difference)
        return Update(shape, dense=quantise(flat.reshape(shape), stored))
    positions = chosen if support is None else support[chosen]
    return Update(shape, sparse=Sparse(positions, quantise(difference[chosen], stored)))


def low_rank_update(
    difference: Tensor, shape: tuple[int, ...], rank: int, stored: str
) -> Update | None:
    """Return the nearest product of a rank (Eckart and Young, 1936); None where nothing differs.

    Half of each singular value goes to either factor, so that both have the same spread and 16 bits
    suit both.
    """
    rows, columns = matrix_shape(shape)
    if not bool(difference.any()):
        return None
    if len(shape) < 2 or rank >= min(rows, columns):
        return entries_update(difference, shape, stored)
    left, sizes, right = torch.linalg.svd(difference.reshape(rows, columns), full_matrices=False)
    root = sizes[:rank].sqrt()
    term = LowRank(
        quantise(left[:, :rank] * root, stored), quantise(root[:, None] * right[:rank], stored)
    )
    return Update(shape, low_rank=term)


def truncated(term: LowRank, rank: int, stored: str) -> LowRank:
    """Return the nearest product of a smaller rank, without making the whole matrix.

    The product of two thin factors has the singular values of an r x r core, found by a QR of each.
    """
    q_left, inner, q_right = _core(term)
    u, sizes, v = torch.linalg.svd(inner, full_matrices=False)
    root = sizes[..., :rank].sqrt()
    new_left = q_left @ u[..., :, :rank] * root[..., None, :]
    new_right = root[..., :, None] * (v[..., :rank, :] @ q_right.transpose(-1, -2))
    return LowRank(quantise(new_left, stored), quantise(new_right, stored))


def singular_values(term: LowRank) -> Tensor:
    """Return the singular values `(r,)` of a product, falling; `(E, r)` of a stack of products."""
    sizes: Tensor = torch.linalg.svdvals(_core(term)[1])
    return sizes


def _core(term: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, C, P with `factor * left @ right = Q C P^T`, Q and P of orthonormal columns."""
    left, right = (values_of(f).double() for f in (term.left, term.right))
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.transpose(-1, -2))
    return q_left, term.factor * (r_left @ r_right.transpose(-1, -2)), q_right
