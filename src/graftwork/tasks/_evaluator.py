"""Evaluation: a model and rows -> metric values, overall and by group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graftwork._batch import Batch
from graftwork._errors import ConfigError, InputError, UnknownNameError
from graftwork.objectives import Model
from graftwork.tasks._metrics import METRICS, Scored, Value
from graftwork.tasks._signature import Signature
from graftwork.tasks._stream import Stream

DEFAULT_METRICS = {
    "classification": ("accuracy", "loss"),
    "regression": ("pearson", "spearman", "loss"),
}
"""Metrics by kind of task where none are named; the first decides which model is best."""


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Which metrics a task has.

    Args:
        signature: labels and units.
        metrics: keys of `METRICS`; the first decides which model is best. Empty: the defaults of
            the kind of task.

    Raises:
        UnknownNameError: no such metric.
        ConfigError: a metric of another kind of task.
    """

    signature: Signature
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind = self.signature.kind
        if not self.metrics:
            object.__setattr__(self, "metrics", DEFAULT_METRICS[kind])
        for name in self.metrics:
            if name not in METRICS:
                raise UnknownNameError("metric", name, METRICS)
            if kind not in METRICS[name].kinds:
                known = sorted(n for n, m in METRICS.items() if kind in m.kinds)
                raise ConfigError(f"metric {name!r} does not go with {kind}; use one of {known}")
        if "f1" in self.metrics and len(self.signature.labels) != 2:
            raise ConfigError(
                f"metric 'f1' wants 2 labels, not {len(self.signature.labels)}; use 'f1_macro'"
            )

    @property
    def main(self) -> str:
        """The metric that decides which model is best."""
        return self.metrics[0]

    @property
    def direction(self) -> str:
        """Whether more ("max") or less ("min") of the main metric is better."""
        return METRICS[self.main].direction

    def better(self, new: Mapping[str, float], old: Mapping[str, float] | None) -> bool:
        """Return whether `new` values beat `old` ones in the main metric; a tie does not."""
        if old is None:
            return True
        difference = new[self.main] - old[self.main]
        return difference > 0 if self.direction == "max" else difference < 0

    def evaluate(
        self,
        model: Model,
        source: Stream | Iterable[Batch],
        batch_size: int = 64,
        groups: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Return metric values of `model`, by name, and by "name/group" where rows have groups.

        The model is called without gradients; setting it to evaluation mode is the caller's part.

        Args:
            model: batch -> outputs `(B, labels)` or `(B, 1)`.
            source: a stream, of which every row is used once, or batches.
            batch_size: rows at a time; with a stream, rows of like length go together.
            groups: group of each row of the source; the stream's own when None.

        Raises:
            InputError: rows without targets, or no rows.
        """
        if isinstance(source, Stream):
            groups = groups or source.groups
            source = source.once(batch_size, by_length=True)
        outputs, targets, rows = [], [], []
        with torch.no_grad():
            for batch in source:
                if batch.targets is None:
                    raise InputError("these rows have no targets: the label column is absent")
                outputs.append(model(batch).detach().double().cpu())
                targets.append(batch.targets.cpu())
                rows.append(batch.rows.cpu())
        if not outputs:
            raise InputError("there are no rows to evaluate on")
        index = torch.cat(rows).numpy()
        order = index.argsort(kind="stable")
        scored = self.scored(torch.cat(outputs).numpy()[order], torch.cat(targets).numpy()[order])
        return self.values(scored, None if groups is None else [groups[i] for i in index[order]])

    def scored(self, outputs: NDArray[Any], targets: NDArray[Any]) -> Scored:
        """Return rows as metrics see them: values of a regression back in the data's units."""
        signature = self.signature
        if outputs.ndim != 2 or outputs.shape[1] != signature.outputs:
            raise InputError(
                f"outputs of shape {outputs.shape} do not fit {signature.outputs} output(s) a row"
            )
        if signature.kind == "classification":
            return Scored(outputs, targets, signature.labels)
        mean, std = signature.target_mean, signature.target_std
        return Scored(outputs[:, 0] * std + mean, targets.astype(np.float64) * std + mean, ())

    def values(self, scored: Scored, groups: Sequence[str] | None = None) -> dict[str, float]:
        """Return metric values of all rows, then of each group."""
        out: dict[str, float] = {}
        for name in self.metrics:
            out.update(_named(name, METRICS[name].function(scored)))
        if groups is not None:
            names = np.asarray(groups)
            for group in sorted(set(groups)):
                part = scored.take(names == group)
                for name in self.metrics:
                    out.update(_named(f"{name}/{group}", METRICS[name].function(part)))
        return out


def _named(name: str, value: Value) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {f"{name}/{key}": item for key, item in value.items()}
    return {name: value}
