"""Optimal transport between weighted points: exact plans (POT) and Sinkhorn (GeomLoss).

Shape legend: P pairs of sets, N and M points of a set, D width of a point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork._errors import InputError, MissingDependencyError


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return `||x_i - y_j||^2` of `x: (..., N, D)` and `y: (..., M, D)`, `(..., N, M)`, >= 0."""
    product = x @ y.transpose(-1, -2)
    sums = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    return (sums - 2.0 * product).clamp_min(0.0)


def transport_plan(cost: Tensor) -> Tensor:
    """Return the plan of least cost between uniform weights, `(N, M)`, without a gradient.

    The linear program is solved exactly by the network simplex of POT (Flamary et al., 2021), in
    float64 on the CPU. By the envelope theorem `<plan, dcost>` is the gradient of the least cost
    wherever the plan is unique, so the plan itself needs none.

    Args:
        cost: `(N, M)` cost of moving one unit from i to j.

    Raises:
        MissingDependencyError: POT is absent.
        InputError: a cost is NaN or infinite.

    Example:
        >>> transport_plan(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    return torch.from_numpy(_solved(_numbers(cost))).to(cost)


def class_plans(cost: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the plans between all classes of rows and all classes of columns, `(N, M)`.

    The block of a pair of classes is their own `transport_plan`, so it sums to 1: `plans * cost`,
    summed by blocks, is the least cost of every pair at once, and its gradient needs one graph
    instead of one for each pair.

    Args:
        cost: `(N, M)`.
        rows: `(N,)` class of each row.
        columns: `(M,)` class of each column.

    Raises:
        MissingDependencyError: POT is absent.
        InputError: a cost is NaN or infinite.
    """
    costs = _numbers(cost)
    plans = np.zeros_like(costs)
    for first in _members(rows):
        for second in _members(columns):
            block = np.ix_(first, second)
            plans[block] = _solved(costs[block])
    return torch.from_numpy(plans).to(cost)


def _members(labels: Tensor) -> list[NDArray[np.int64]]:
    held = labels.cpu().numpy()
    return [np.flatnonzero(held == label) for label in np.unique(held)]


def _numbers(cost: Tensor) -> NDArray[np.float64]:
    costs: NDArray[np.float64] = cost.detach().double().cpu().numpy()
    if not np.isfinite(costs).all():
        raise InputError("a transport cost is NaN or infinite; look at the features")
    return costs


def _solved(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    try:
        import ot
    except ImportError as error:
        raise MissingDependencyError("POT", "transport", "exact optimal transport") from error
    rows, columns = costs.shape
    weights = np.full(rows, 1.0 / rows), np.full(columns, 1.0 / columns)
    # dual values are not asked for and uniform weights need no check: a third of a small problem
    less = {"center_dual": False, "check_marginals": False}
    plan: NDArray[np.float64] = ot.emd(*weights, costs, numItermax=1_000_000, numThreads=1, **less)
    return plan


def sinkhorn(losses: Any, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Return a GeomLoss loss of batches of weighted points, `(P,)`; no graph under `no_grad`.

    Args:
        losses: from `sinkhorn_loss`.
        first: weights `(P, N)`, each row summing to 1 (0 for padding), and points `(P, N, D)`.
        second: weights `(P, M)` and points `(P, M, D)`.
    """
    wanted = torch.is_grad_enabled()
    try:
        out: Tensor = losses(*first, *second)
    finally:
        # GeomLoss turns gradients on for good, also inside the caller's `no_grad`.
        torch.set_grad_enabled(wanted)
    return out if wanted else out.detach()


def sinkhorn_loss(cost: Any, *, eps: float, scaling: float, debias: bool, most: float) -> Any:
    """Return GeomLoss's Sinkhorn loss (Feydy et al., 2019, equation 3) over dense costs.

    Args:
        cost: `(P, N, D), (P, M, D)` -> `(P, N, M)`.
        eps: last temperature, in the units of `cost`.
        scaling: ratio of neighbouring blurs on the way down from the largest cost; nearer to 1 is
            slower and more exact.
        debias: whether the costs of each set to itself are taken off, so that equal sets have
            distance 0.
        most: upper bound of `cost`, where the temperature starts.

    Raises:
        MissingDependencyError: GeomLoss is absent.
    """
    try:
        from geomloss import SamplesLoss
    except ImportError as error:
        raise MissingDependencyError("geomloss", "transport", "Sinkhorn distances") from error
    blur = eps**0.5
    return SamplesLoss(
        loss="sinkhorn",
        p=2,
        blur=blur,
        diameter=max(most**0.5, 2.0 * blur),
        scaling=scaling,
        cost=cost,
        debias=debias,
        backend="tensorized",
    )
