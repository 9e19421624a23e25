"""Distances between classes, each seen as the distribution of its features.

Shape legend: P pairs, N and M rows of a class, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from graftwork.objectives._transport import (
    class_plans,
    sinkhorn,
    sinkhorn_loss,
    squared_distances,
    transport_plan,
)

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Classes to compare: features `(N, D)` and `(M, D)`."""
LabelDistance = Callable[[Pairs], Tensor]
"""Pairs of classes -> squared 2-Wasserstein distances `(P,)`."""


def gaussian_w2(pairs: Pairs) -> Tensor:
    """Return the squared 2-Wasserstein distances of Gaussians fitted to the classes, `(P,)`.

    W^2 = ||m - m'||^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2), the Bures metric. With centred rows
    A (N, D) and B (M, D), S = A^T A / N and S' = B^T B / M, so the last trace is the sum of the
    singular values of A B^T / sqrt(N M). No matrix root is taken: nothing is added to a covariance
    of less than full rank (fewer rows than features), and the gradient of a singular value does not
    divide by gaps between eigenvalues, which makes the usual form blow up. Covariances divide by
    N, so a class of one row is a point.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> gaussian_w2([(x, x + 1.0)]).item()
        2.0
    """
    return torch.stack([_gaussian(first, second) for first, second in pairs])


def _gaussian(first: Tensor, second: Tensor) -> Tensor:
    means = first.mean(0), second.mean(0)
    centred = (first - means[0]) / len(first) ** 0.5, (second - means[1]) / len(second) ** 0.5
    spread = centred[0].square().sum() + centred[1].square().sum()
    values = torch.linalg.svdvals(centred[0] @ centred[1].T)
    # A singular value of 0 has no gradient of its own; leaving it out gives the smallest one.
    floor = values.detach().max() * max(len(first), len(second)) * torch.finfo(values.dtype).eps
    shared = torch.where(values > floor, values, torch.zeros_like(values)).sum()
    moved = (means[0] - means[1]).square().sum()
    out: Tensor = moved + (spread - 2.0 * shared).clamp_min(0.0)
    return out


def exact_w2(pairs: Pairs) -> Tensor:
    """Return the squared 2-Wasserstein distances of the classes' rows, by linear programs, `(P,)`.

    Cost `||x - x'||^2`, without a half. The gradient is that of the costs at the optimal plan.

    Raises:
        MissingDependencyError: POT is absent.
    """
    costs = [squared_distances(first, second) for first, second in pairs]
    return torch.stack([(transport_plan(cost) * cost).sum() for cost in costs])


def exact_table(squared: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return `exact_w2` between all classes of two sets, `(K, L)`, from what their rows are apart.

    Args:
        squared: `(N, M)` squared distances of all rows.
        rows: `(N,)` class of each row of the first set, 0 to K - 1, each there.
        columns: `(M,)` class of each row of the second set, 0 to L - 1, each there.

    Raises:
        MissingDependencyError: POT is absent.
    """
    moved = class_plans(squared, rows, columns) * squared
    by_row, by_column = (functional.one_hot(labels).to(squared) for labels in (rows, columns))
    return by_row.T @ moved @ by_column


def sinkhorn_w2(
    pairs: Pairs, *, eps: float = 0.1, scaling: float = 0.9, debias: bool = True
) -> Tensor:
    """Return Sinkhorn divergences of the classes' rows under `||x - x'||^2`, `(P,)`.

    All pairs run as one batch; short classes are padded by rows of weight 0.

    Args:
        pairs: see `Pairs`.
        eps: temperature, in squared units of the features.
        scaling: see `sinkhorn_loss`.
        debias: whether equal classes have distance 0.

    Raises:
        MissingDependencyError: GeomLoss is absent.
    """
    first, second = (_padded([pair[side] for pair in pairs]) for side in (0, 1))
    with torch.no_grad():
        most = float(squared_distances(first[1], second[1]).max())
    loss = sinkhorn_loss(
        squared_distances, eps=eps, scaling=scaling, debias=debias, most=max(most, eps)
    )
    return sinkhorn(loss, first, second)


def _padded(sets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return weights `(P, N)` and rows `(P, N, D)` of sets of different sizes."""
    weights = [torch.full((len(rows),), 1.0 / len(rows), dtype=rows.dtype) for rows in sets]
    rows = pad_sequence(list(sets), batch_first=True)
    return pad_sequence(weights, batch_first=True).to(rows.device), rows
