"""How far two data sets are apart, with an interval over subsamples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graftwork._errors import ConfigError
from graftwork.objectives._dataset_distance import DatasetDistance, Labelled, check_labelled


@dataclass(frozen=True, slots=True)
class DistanceEstimate:
    """A distance over subsamples.

    Attributes:
        value: mean over the subsamples.
        low: 2.5 % quantile of them.
        high: 97.5 % quantile.
        draws: the subsamples' own distances.
    """

    value: float
    low: float
    high: float
    draws: tuple[float, ...]


def dataset_distance(
    first: Labelled,
    second: Labelled,
    *,
    distance: DatasetDistance | None = None,
    rows: int = 200,
    draws: int = 20,
    seed: int = 0,
) -> DistanceEstimate:
    """Return the transport distance of two labelled sets, and how much it varies over subsamples.

    Which of several bases suits data, or which data suit a base? Compare the features of the rows
    with those of each base's own inputs (`graftwork.tasks.source_features`). Each draw takes `rows`
    rows of both sets without replacement. Transport between samples is larger than between what
    they were drawn from, the more so the fewer they are: compare distances of equal `rows` only.

    Args:
        first: features `(N, D)` and labels `(N,)`.
        second: features `(M, D)` and labels `(M,)`.
        distance: how it is computed; None: exact, classes as samples.
        rows: of a subsample; all of a set that has no more.
        draws: subsamples.
        seed: of the subsamples.

    Returns:
        In half squared units of the features, see `DatasetDistance`.

    Raises:
        ConfigError: rows or draws are less than 1.
        InputError: shapes that do not fit.
        MissingDependencyError: the extra `transport` is absent.

    Example:
        >>> x, y = torch.arange(40.0)[:, None] % 8, torch.arange(40) % 2
        >>> near = dataset_distance((x, y), (x + 1.0, y), rows=20, draws=5)
        >>> far = dataset_distance((x, y), (x + 9.0, y), rows=20, draws=5)
        >>> near.high < far.low
        True
    """
    check_labelled(first, second)
    if min(rows, draws) < 1:
        raise ConfigError(f"rows and draws: 1 or more, not {rows} and {draws}")
    function = distance or DatasetDistance(solver="exact")
    found = []
    with torch.no_grad():
        for i in range(draws):
            pair = [
                _part(labelled, rows, (seed, i, side)) for side, labelled in _sides(first, second)
            ]
            found.append(float(function(*pair)))
    low, high = (float(q) for q in np.quantile(found, [0.025, 0.975]))
    return DistanceEstimate(math.fsum(found) / draws, low, high, tuple(found))


def _sides(first: Labelled, second: Labelled) -> list[tuple[int, Labelled]]:
    return [(0, first), (1, second)]


def _part(labelled: Labelled, rows: int, key: tuple[int, int, int]) -> Labelled:
    features, labels = labelled
    if len(labels) <= rows:
        return labelled
    kept = np.sort(np.random.default_rng(key).permutation(len(labels))[:rows])
    index: Tensor = torch.from_numpy(kept).to(labels.device)
    return features[index], labels[index]
