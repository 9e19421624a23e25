"""Linear attention: cost and memory that grow with the length, not with its square.

Shape legend: B rows, H heads, L queries, S keys, F features of phi, D width of a head, N chunks of
C positions.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6
"""Added to the denominator, as published. Where all features of a query are 0, the output is 0."""
_CHUNK = 64


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    eps: float = EPSILON,
) -> Tensor:
    """Attend with weights proportional to `phi(q_l) . phi(k_s)`, without forming them.

    `out_l = (phi(q_l) S) / (phi(q_l) . z + eps)` with `S = sum_s phi(k_s) v_s^T` and
    `z = sum_s phi(k_s)` (Katharopoulos et al., 2020, equation 5); causal sums end at s = l
    (equation 9), and are built chunk by chunk, so that their memory too is linear in the length.

    Args:
        query: `(B, H, L, F)` features of queries, each >= 0.
        key: `(B, H, S, F)` features of keys, each >= 0.
        value: `(B, H, S, D)`.
        mask: `(B, S)`, nonzero where a key counts; None when all do.
        causal: position l sees keys up to l only; then L = S.
        eps: added to the denominator.

    Returns:
        `(B, H, L, D)`.

    Example:
        >>> import torch
        >>> q = k = torch.ones(1, 1, 3, 2)
        >>> v = torch.tensor([[[[0.0], [3.0], [6.0]]]])
        >>> linear_attention(q, k, v).flatten().round().tolist()
        [3.0, 3.0, 3.0]
        >>> linear_attention(q, k, v, causal=True).flatten().round(decimals=3).tolist()
        [0.0, 1.5, 3.0]
    """
    key = _masked(key, mask)
    if causal:
        return _causal(query, key, value, eps)
    # S the other way round: the gradients of query and key are then laid out as they are, without
    # which the feature map's own gradient takes 30 times as long; S^T itself costs the same
    above = query @ (value.transpose(-1, -2) @ key).transpose(-1, -2)
    # a product with one column is slower than the sum it stands for
    below = (query * key.sum(-2, keepdim=True)).sum(-1, keepdim=True)
    return above / (below + eps)


def attention_weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    eps: float = EPSILON,
) -> Tensor:
    """Return the weights `(B, H, L, S)` that linear attention implies, for looking at.

    Rows sum to 1 but for `eps`; a query without a positive feature has only zeros. Memory grows
    with L * S. Arguments are those of `linear_attention`.
    """
    weights = query @ _masked(key, mask).transpose(-1, -2)
    if causal:
        weights = weights.tril()
    return weights / (weights.sum(-1, keepdim=True) + eps)


def _masked(key: Tensor, mask: Tensor | None) -> Tensor:
    return key if mask is None else key * mask[:, None, :, None].to(key.dtype)


def _causal(query: Tensor, key: Tensor, value: Tensor, eps: float) -> Tensor:
    length = query.shape[-2]
    size = min(_CHUNK, length)
    query, key, value = (_chunks(x, size) for x in (query, key, value))
    within = (query @ key.transpose(-1, -2)).tril()
    sums, totals = key.transpose(-1, -2) @ value, key.sum(-2).unsqueeze(-1)
    before, count = _before(sums), _before(totals)
    above = within @ value + query @ before
    below = within.sum(-1, keepdim=True) + query @ count
    return (above / (below + eps)).flatten(2, 3)[:, :, :length]


def _before(sums: Tensor) -> Tensor:
    """Return what lies before each chunk `(B, H, N, ...)`, without a difference of sums."""
    return functional.pad(sums, (0, 0, 0, 0, 1, 0)).cumsum(2)[:, :, :-1]


def _chunks(x: Tensor, size: int) -> Tensor:
    """Return `(B, H, N, C, ...)`, padded with zeros to whole chunks."""
    missing = -x.shape[2] % size
    out: Tensor = functional.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, size))
    return out
