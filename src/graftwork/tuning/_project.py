"""Projection on the L0 ball: which k entries to keep, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork._errors import TrainingError


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return the positions of the k largest scores; ties go to the lowest position.

    The order is exact, unlike the bisection on a threshold in published code, which fails on ties
    and on scores above 1.

    Arguments:
        scores: `(d,)` numbers, no NaN.
        k: how many, at most d.

    Returns:
        `(k,)` int64, strictly increasing.

    Raises:
        TrainingError: a score is NaN (training diverged).

    Example:
        >>> top_k(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0]), 3)
        tensor([1, 2, 3])
    """
    if bool(torch.isnan(scores).any()):
        raise TrainingError("scores hold NaN: training diverged; lower the learning rates")
    if k >= scores.numel():
        return torch.arange(scores.numel(), device=scores.device)
    threshold = torch.topk(scores, k, sorted=False).values.min()
    above = (scores > threshold).nonzero().squeeze(1)
    level = (scores == threshold).nonzero().squeeze(1)
    return torch.cat([above, level[: k - above.numel()]]).sort().values


def project(delta: Tensor, k: int, fallback: Tensor) -> Tensor:
    """Return the positions of the k largest |delta|; with fewer than k nonzero, fill up.

    All nonzero entries are kept then, and the rest are zeros with the largest `fallback`, ties to
    the lowest position, so that exactly k entries are kept whatever happens.

    Arguments:
        delta: `(d,)` learnt difference.
        k: how many entries to keep, at most d.
        fallback: `(d,)` at least 0; ranks the zeros (for gates the expected |delta|).

    Returns:
        `(k,)` int64, strictly increasing.

    Example:
        >>> project(torch.tensor([0.0, -2.0, 0.0, 0.0]), 2, torch.tensor([0.0, 9.0, 0.5, 0.1]))
        tensor([1, 2])
    """
    magnitude = delta.abs()
    if int(magnitude.count_nonzero()) >= k:
        return top_k(magnitude, k)
    return top_k(torch.where(magnitude > 0, torch.inf, fallback), k)
