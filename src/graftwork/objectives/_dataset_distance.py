"""The optimal-transport dataset distance between two labelled sets of features.

Shape legend: N and M rows of the two sets, D features, K and L their classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from graftwork._errors import ConfigError, InputError
from graftwork.objectives._label_distance import (
    LabelDistance,
    exact_table,
    exact_w2,
    gaussian_w2,
    sinkhorn_w2,
)
from graftwork.objectives._transport import (
    sinkhorn,
    sinkhorn_loss,
    squared_distances,
    transport_plan,
)

Labelled = tuple[Tensor, Tensor]
"""Features `(N, D)`, floating, and labels `(N,)`, integers of any range."""


@dataclass(frozen=True, kw_only=True)
class DatasetDistance:
    """The optimal-transport dataset distance (Alvarez-Melis and Fusi, 2020, equations 4 and 5).

    Optimal transport of all rows of one set to all rows of the other, with the cost

        c((x, y), (x', y')) = (||x - x'||^2 + W(y, y')) / 2,

    where W(y, y') is the squared 2-Wasserstein distance between the features of class y and those
    of class y'. Halves: as in the program of Shen et al. (2023), the outer cost has the factor 1/2
    and the inner one, `||x - x'||^2`, has not; so `2 * value` is the square of equation 4's
    distance.

    It is called on two labelled sets with ALL their classes. Their program calls it on one target
    class at a time, all labels 0, and sums the values by class frequency: each class is then
    pulled towards the whole source and to the same mean, and long alignment makes classes collapse.
    `classwise=True` gives that.

    Gradients reach the features of both sets, through `||x - x'||^2` and through W;
    `detach_labels=True` stops the second way. GeomLoss takes gradients by its last two half steps,
    in each of which the other side is constant. A label distance is the same number in both, so
    with their program its gradient counts twice; here it counts once, as finite differences say.

    Example:
        >>> distance = DatasetDistance(solver="exact", classes="gaussian")
        >>> x, y = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> [round(distance((x, y), (z, y)).item(), 4) for z in (x, x + 3.0)]
        [0.0, 9.0]
    """

    solver: Literal["sinkhorn", "exact"] = "sinkhorn"
    """"sinkhorn": entropic, GeomLoss, differentiable in the plan too; "exact": the linear program
    by POT, whose plan is constant for the gradient. For a few hundred rows exact is the faster."""
    classes: Literal["samples", "gaussian"] = "samples"
    """How W is computed: from the rows by the same solver, or between Gaussians (Bures metric)."""
    eps: float = 0.1
    """Sinkhorn: last temperature in the units of the cost, outer and inner alike."""
    scaling: float = 0.9
    """Sinkhorn: ratio of neighbouring blurs, one turn of the loop each. At 0.9 values are right to
    some per mille and gradients to some ten percent; 0.999 makes both right, at 100 times the time.
    Shen et al. leave it at 0.5."""
    debias: bool = True
    """Sinkhorn: whether equal sets have distance 0, on both levels."""
    detach_labels: bool = False
    """Whether W counts as constant for the gradient."""
    classwise: bool = False
    """Whether the first set goes one class at a time, as in Shen et al.'s program."""

    def __post_init__(self) -> None:
        if self.solver not in ("sinkhorn", "exact"):
            raise ConfigError(f"solver: 'sinkhorn' or 'exact', not {self.solver!r}")
        if self.classes not in ("samples", "gaussian"):
            raise ConfigError(f"classes: 'samples' or 'gaussian', not {self.classes!r}")
        if not 0.0 < self.eps < math.inf:
            raise ConfigError(f"eps: above 0, not {self.eps}")
        if not 0.0 < self.scaling < 1.0:
            raise ConfigError(f"scaling: in (0, 1), not {self.scaling}")

    def __call__(self, first: Labelled, second: Labelled) -> Tensor:
        """Return the distance, a scalar, in half squared units of the features.

        Args:
            first: features and labels; classwise, the set that goes class by class.
            second: features of the same width, and labels.

        Raises:
            InputError: shapes that do not fit, or an empty set.
            MissingDependencyError: the extra `transport` is absent.
        """
        check_labelled(first, second)
        if not self.classwise:
            return self._whole(first, second)
        return self.by_class(first, second).mean()

    def by_class(self, first: Labelled, second: Labelled) -> Tensor:
        """Return for each row of `first` the distance of its class alone to `second`, `(N,)`.

        Their mean is the sum of the distances of the classes, weighted by class frequency.
        """
        features, labels = first
        found, place = labels.unique(return_inverse=True)
        parts = [features[place == number] for number in range(len(found))]
        values = [self._whole((x, torch.zeros_like(labels[: len(x)])), second) for x in parts]
        return torch.stack(values)[place]

    def label_distances(self, first: Labelled, second: Labelled) -> Tensor:
        """Return W between all classes, those of `first` before those of `second`, `(K+L, K+L)`.

        Classes stand in the order of their labels. The solver "exact" needs only the block between
        the sets; the others are 0.
        """
        own, other = _groups(first), _groups(second)
        groups, split, total = [*own, *other], len(own), len(own) + len(other)
        blocks = [[(i, j) for i in range(split) for j in range(split, total)]]
        if self.solver == "sinkhorn" and self.debias:
            blocks += [
                list(combinations(range(split), 2)),
                list(combinations(range(split, total), 2)),
            ]
        # each block by itself: pairs are padded to its own largest class, not to that of both sets
        index = [pair for block in blocks for pair in block]
        parts = [
            self._between()([(groups[i], groups[j]) for i, j in block]) for block in blocks if block
        ]
        values = torch.cat(parts)
        rows, columns = torch.tensor(index, device=values.device).T
        out = values.new_zeros(total, total).index_put((rows, columns), values)
        return out + out.T

    def _between(self) -> LabelDistance:
        if self.classes == "gaussian":
            return gaussian_w2
        if self.solver == "exact":
            return exact_w2
        return partial(sinkhorn_w2, eps=self.eps, scaling=self.scaling, debias=self.debias)

    def _whole(self, first: Labelled, second: Labelled) -> Tensor:
        found, rows = first[1].unique(return_inverse=True)
        columns = second[1].unique(return_inverse=True)[1]
        if self.solver == "exact":
            return self._exact((first[0], rows), (second[0], columns))
        table = self.label_distances(first, second)
        if self.detach_labels:
            table = table.detach()
        return self._entropic((first[0], rows), (second[0], columns + len(found)), table)

    def _exact(self, first: Labelled, second: Labelled) -> Tensor:
        """Return the distance of sets whose labels count from 0; rows are compared once."""
        squared, (rows, columns) = squared_distances(first[0], second[0]), (first[1], second[1])
        if self.classes == "samples":
            between = exact_table(squared, rows, columns)
        else:
            split = int(rows.max()) + 1
            between = self.label_distances(first, second)[:split, split:]
        if self.detach_labels:
            between = between.detach()
        cost = (squared + between[rows][:, columns]) / 2.0
        return (transport_plan(cost) * cost).sum()

    def _entropic(self, first: Labelled, second: Labelled, table: Tensor) -> Tensor:
        # The value of W with half its gradient: see the docstring of the class.
        half = (table + table.detach()) / 2.0

        def cost(x: Tensor, y: Tensor) -> Tensor:
            labels = x[..., -1].long(), y[..., -1].long()
            between = half[labels[0][..., :, None], labels[1][..., None, :]]
            return (squared_distances(x[..., :-1], y[..., :-1]) + between) / 2.0

        points = [torch.cat((x, y[:, None].to(x.dtype)), 1)[None] for x, y in (first, second)]
        weights = [p.new_full(p.shape[:2], 1.0 / p.shape[1]) for p in points]
        with torch.no_grad():
            most = max(float(cost(points[0], points[1]).max()), self.eps)
        loss = sinkhorn_loss(
            cost, eps=self.eps, scaling=self.scaling, debias=self.debias, most=most
        )
        return sinkhorn(loss, (weights[0], points[0]), (weights[1], points[1]))[0]


def check_labelled(first: Labelled, second: Labelled) -> None:
    """Raise unless both are features `(N, D)` with labels `(N,)`, of one width and not empty.

    Raises:
        InputError: names the shapes.
    """
    for features, labels in (first, second):
        if features.dim() != 2 or labels.shape != features.shape[:1] or not len(features):
            raise InputError(
                f"a dataset distance needs features (rows, width) and a label a row, not "
                f"{tuple(features.shape)} and {tuple(labels.shape)}"
            )
    if first[0].shape[1] != second[0].shape[1]:
        raise InputError(
            f"features of width {first[0].shape[1]} and {second[0].shape[1]} do not compare"
        )


def _groups(labelled: Labelled) -> list[Tensor]:
    features, labels = labelled
    return [features[labels == label] for label in labels.unique()]
