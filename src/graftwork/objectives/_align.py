"""Alignment: how far the features of an input port are from those of a base's own inputs.

Shape legend: B rows, S positions, D width, M rows of the source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from graftwork._batch import Batch
from graftwork._errors import ConfigError, InputError, UnsupportedError
from graftwork.objectives._dataset_distance import DatasetDistance, Labelled
from graftwork.objectives._kernel_mmd import kernel_mmd
from graftwork.objectives._pairwise_l2 import pairwise_l2
from graftwork.objectives._types import Model

Distance = Callable[[Labelled, Labelled], Tensor]
"""Two labelled sets of features -> a scalar with a gradient."""
DistanceName = Literal["otdd", "mmd", "l2"]

DISTANCES: dict[str, Distance] = {
    "otdd": DatasetDistance(solver="exact"),
    "mmd": lambda first, second: kernel_mmd(first[0], second[0]),
    "l2": lambda first, second: pairwise_l2(first[0], second[0]),
}
"""Distance by name: of data sets with labels, of distributions, of rows (Shen et al., 2023, table
of ablations)."""


@dataclass(frozen=True, slots=True)
class Look:
    """How an alignment stands.

    Attributes:
        distance: to the source.
        separability: of the target's classes, see `separability`.
    """

    distance: float
    separability: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Align:
    """The objective of the first stage of ORCA (Shen et al., 2023, section 3.2).

    A row's feature is the mean over positions of what the port gives for it; the base is not run.
    Features of both sides are divided by the spread of the source, so that a distance, and the
    temperature of an entropic one, mean the same for every base (ours: embeddings of BERT-like
    bases vary by 0.1 in all, those of others by 100).

    Args:
        source: features and labels of the base's own inputs, `(M, D)` and `(M,)`.
        distance: a key of `DISTANCES`, or a function of two labelled sets.
        port: name of the input port.
        probe: rows that `look` measures; always the same, so that looks compare.

    Raises:
        InputError: a source without spread.
    """

    source: Labelled
    distance: DistanceName | Distance = "otdd"
    port: str = "input"
    probe: Batch | None = None

    def __post_init__(self) -> None:
        if isinstance(self.distance, str) and self.distance not in DISTANCES:
            raise ConfigError(f"distance: one of {list(DISTANCES)}, not {self.distance!r}")
        if not float(self.spread) > 0.0:
            raise InputError("all source features are equal: give texts that differ")

    @cached_property
    def spread(self) -> Tensor:
        """Root of the source's total variance, a scalar."""
        return self.source[0].var(0, correction=0).sum().sqrt()

    def __call__(self, model: Model, batch: Batch) -> Tensor:
        """Return the distance of the batch to the source as the loss of every row, `(B,)`.

        Their mean, which a step minimises, is the distance. Classwise it is each row's own class's.

        Args:
            model: has the port; see `features`.
            batch: every class at once; targets `(B,)` int64.
        """
        first, second = self._pair(model, batch)
        function = self._function
        if isinstance(function, DatasetDistance) and function.classwise:
            return function.by_class(first, second)
        return function(first, second).expand(len(batch))

    @property
    def _function(self) -> Distance:
        return DISTANCES[self.distance] if isinstance(self.distance, str) else self.distance

    def _pair(self, model: Model, batch: Batch) -> tuple[Labelled, Labelled]:
        if batch.targets is None:
            raise InputError(
                "alignment needs a class of every row; targets of numbers get pseudo "
                "labels (`graftwork.tasks.pseudo_labels`)"
            )
        features, spread = self.features(model, batch), self.spread
        source = (self.source[0].to(features), self.source[1].to(batch.targets.device))
        scale = spread.to(features)
        return (features / scale, batch.targets), (source[0] / scale, source[1])

    def features(self, model: Model, batch: Batch) -> Tensor:
        """Return the mean over positions of the port's output, `(B, D)`.

        Raises:
            UnsupportedError: the model has no ports, or none of this name.
        """
        ports: Any = getattr(model, "ports", {})
        if self.port not in ports:
            raise UnsupportedError(
                f"alignment needs a model with the port {self.port!r}; it has {sorted(ports)}"
            )
        out: Tensor = ports[self.port](batch.inputs["x"]).mean(1)
        return out

    @torch.no_grad()
    def look(self, model: Model) -> Look:
        """Measure distance and separability on the probe.

        Raises:
            ConfigError: there is no probe.
        """
        if self.probe is None or self.probe.targets is None:
            raise ConfigError("give the alignment a probe with targets to look at")
        device = next(iter(getattr(model, "ports", {})[self.port].parameters())).device
        first, second = self._pair(model, self.probe.to(device))
        return Look(float(self._function(first, second)), separability(*first))


def separability(features: Tensor, labels: Tensor) -> float:
    """Return the share of the features' variance that lies between class means, in [0, 1].

    It falls towards 0 where classes collapse into each other, the known failure of long alignment.

    Args:
        features: `(N, D)`.
        labels: `(N,)`.

    Example:
        >>> x = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
        >>> separability(x, torch.tensor([0, 0, 1, 1])), separability(x, torch.tensor([0, 1, 0, 1]))
        (1.0, 0.0)
    """
    centred = features - features.mean(0)
    total = centred.square().sum()
    groups = [centred[labels == label] for label in labels.unique()]
    between = torch.stack([len(g) * g.mean(0).square().sum() for g in groups]).sum()
    return float(between / total) if float(total) > 0.0 else 0.0
