"""The mean distance between the rows of two sets of features, whatever their labels.

Shape legend: N and M rows of the two sets, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork.objectives._transport import squared_distances


def pairwise_l2(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean Euclidean distance over all pairs of a row of each set, a scalar.

    The crude rival of Shen et al. (2023, ablation): it is not 0 for equal sets, and pulls every row
    to one middle. Whether theirs squares the distances we could not make sure of; ours does not.

    Args:
        first: `(N, D)`.
        second: `(M, D)`.

    Example:
        >>> pairwise_l2(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])).item()
        5.0
    """
    squared = squared_distances(first, second)
    # The root of 0 has an infinite gradient.
    return squared.clamp_min(torch.finfo(squared.dtype).eps).sqrt().mean()
