"""A distance between the distributions of two sets of features, whatever their labels.

Shape legend: N and M rows of the two sets, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork.objectives._transport import squared_distances


def kernel_mmd(first: Tensor, second: Tensor, *, kernels: int = 5, factor: float = 2.0) -> Tensor:
    """Return the squared maximum mean discrepancy under a sum of Gaussian kernels, a scalar.

    `mean k(x, x) + mean k(y, y) - 2 mean k(x, y)` over all pairs, equal rows included (the biased
    estimate of Gretton et al., 2012, equation 5), with `k(u, v) = sum_i exp(-||u - v||^2 / b_i)`.
    The bandwidths `b_i` are powers of `factor` around the mean squared distance over the pairs of
    different rows of both sets together (Long et al., 2015); they count as constant.

    Args:
        first: `(N, D)`.
        second: `(M, D)`.
        kernels: how many bandwidths; 5 as in Shen et al. (2023).
        factor: between neighbouring bandwidths.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> kernel_mmd(x, x).item(), kernel_mmd(x, x + 1.0).item() > 0.1
        (0.0, True)
    """
    rows = torch.cat((first, second))
    squared = squared_distances(rows, rows)
    middle = squared.detach().sum() / (len(rows) * max(len(rows) - 1, 1))
    powers = torch.arange(kernels, device=rows.device, dtype=rows.dtype) - kernels // 2
    widths = (middle * factor**powers).clamp_min(torch.finfo(rows.dtype).tiny)
    kernel = torch.exp(-squared[..., None] / widths).sum(-1)
    size = len(first)
    within = kernel[:size, :size].mean() + kernel[size:, size:].mean()
    return within - 2.0 * kernel[:size, size:].mean()
