"""Maximum mean discrepancy between two sets of vectors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from graftwork._errors import InputError, UnknownNameError

Kernel = Literal["gaussian", "laplacian"]


def mmd(
    x: Tensor, y: Tensor, *, kernel: Kernel = "gaussian", sigma: float = 20.0, eps: float = 1e-6
) -> Tensor:
    """Return the maximum mean discrepancy between the sets `x` and `y`, `(...)`.

    `sqrt(mean k(x, x') + mean k(y, y') - 2 mean k(x, y) + eps)` over all pairs, those of a vector
    with itself included (Gretton et al. 2012, eq. 5, the biased estimate). The Gaussian kernel is
    `exp(-|x - y|^2 / (2 sigma))`, the Laplacian `exp(-|x - y|_1 / (2 sigma))`: sigma is not
    squared, as in BEAR (Kumar et al. 2019, section 5) and UWAC (Wu et al. 2021).

    Args:
        x: `(..., n, d)` vectors.
        y: `(..., m, d)` vectors.
        kernel: "gaussian" or "laplacian".
        sigma: width of the kernel; 20 is the choice of BEAR for pre-tanh actions.
        eps: keeps the root and its gradient finite where the sets are equal.

    Raises:
        InputError: shapes that do not go together, or a width that is not above 0.
        UnknownNameError: no such kernel.

    Example:
        >>> x = torch.zeros(1, 4, 2)
        >>> round(float(mmd(x, x)), 4), round(float(mmd(x, x + 10.0, sigma=1.0)), 4)
        (0.001, 1.4142)
    """
    if x.dim() < 2 or y.dim() < 2 or x.shape[-1] != y.shape[-1] or x.shape[:-2] != y.shape[:-2]:
        raise InputError(
            f"mmd compares sets (..., n, d) and (..., m, d), not {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    if not sigma > 0.0:
        raise InputError(f"mmd: sigma is above 0, not {sigma}")
    if kernel not in ("gaussian", "laplacian"):
        raise UnknownNameError("kernel", kernel, ("gaussian", "laplacian"))
    both = torch.cat([x, y], dim=-2)
    gaps = both.unsqueeze(-2) - both.unsqueeze(-3)
    far = gaps.square().sum(-1) if kernel == "gaussian" else gaps.abs().sum(-1)
    near = torch.exp(-far / (2.0 * sigma))
    n = x.shape[-2]
    within = near[..., :n, :n].mean((-2, -1)) + near[..., n:, n:].mean((-2, -1))
    # in exact arithmetic never below 0; rounding must not reach past eps
    squared = (within - 2.0 * near[..., :n, n:].mean((-2, -1))).clamp_min(0.0)
    return torch.sqrt(squared + eps)
