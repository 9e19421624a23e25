"""Equality of deltas' parts, bit for bit."""

from __future__ import annotations

from graftwork.deltas._terms import Int8Blocks, LowRank, Port, Sparse, Stored, Update
from graftwork.deltas._writer import tensor_bytes


def same_stored(a: Stored | None, b: Stored | None) -> bool:
    """Return whether both are absent, or have the same type, shape and bits."""
    if a is None or b is None:
        return a is b
    if isinstance(a, Int8Blocks) or isinstance(b, Int8Blocks):
        return (
            isinstance(a, Int8Blocks)
            and isinstance(b, Int8Blocks)
            and a.shape == b.shape
            and same_stored(a.codes, b.codes)
            and same_stored(a.scales, b.scales)
        )
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a is b or tensor_bytes(a) == tensor_bytes(b)


def same_update(a: Update, b: Update) -> bool:
    """Return whether two updates have the same shape and terms, bit for bit."""
    return (
        a.shape == b.shape
        and _same_sparse(a.sparse, b.sparse)
        and _same_low_rank(a.low_rank, b.low_rank)
        and same_stored(a.dense, b.dense)
        and same_stored(a.scale, b.scale)
    )


def same_port(a: Port, b: Port) -> bool:
    """Return whether two ports have the same kind, config and tensors, bit for bit."""
    if (a.kind, a.config, a.tensors.keys()) != (b.kind, b.config, b.tensors.keys()):
        return False
    return all(same_stored(a.tensors[name], b.tensors[name]) for name in a.tensors)


def _same_sparse(a: Sparse | None, b: Sparse | None) -> bool:
    if a is None or b is None:
        return a is b
    return (
        a.mask == b.mask
        and same_stored(a.positions, b.positions)
        and same_stored(a.values, b.values)
    )


def _same_low_rank(a: LowRank | None, b: LowRank | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.factor == b.factor and same_stored(a.left, b.left) and same_stored(a.right, b.right)
