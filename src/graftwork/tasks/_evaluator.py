"""Evaluation: a model and rows -> metric values, overall, by target and by group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from graftwork._batch import Batch
from graftwork._errors import ConfigError, InputError, UnknownNameError
from graftwork.objectives import Model
from graftwork.tasks._metrics import METRICS, Scored, Value
from graftwork.tasks._ranking import Directed, Ranking
from graftwork.tasks._signature import Signature
from graftwork.tasks._stream import Stream

DEFAULT_METRICS = {
    "classification": ("accuracy", "loss"),
    "regression": ("pearson", "spearman", "loss"),
    "binary": ("roc_auc", "average_precision", "loss"),
    "multilabel": ("f1", "average_precision", "loss"),
}
"""Metrics by kind of task where none are named; the first decides which model is best."""


@dataclass(frozen=True, slots=True)
class Evaluator(Ranking):
    """Which metrics a task has; it is the `Scorer` of tables.

    Args:
        signature: labels and units.
        metrics: keys of `METRICS`; the first decides which model is best. Empty: the defaults of
            the kind of task.

    Raises:
        UnknownNameError: no such metric.
        ConfigError: a metric of another kind of task, or a kind without metrics.
    """

    known: ClassVar[Mapping[str, Directed]] = METRICS
    signature: Signature
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind = self.signature.kind
        if kind not in DEFAULT_METRICS:
            raise ConfigError(f"kind {kind!r} has no metrics; give the task a scorer of its own")
        if not self.metrics:
            object.__setattr__(self, "metrics", DEFAULT_METRICS[kind])
        for name in self.metrics:
            if name not in METRICS:
                raise UnknownNameError("metric", name, METRICS)
            if kind not in METRICS[name].kinds:
                known = sorted(n for n, m in METRICS.items() if kind in m.kinds)
                raise ConfigError(f"metric {name!r} does not go with {kind}; use one of {known}")
        labels = len(self.signature.labels)
        for name in self.metrics:
            if kind == "classification" and METRICS[name].two_labels and labels != 2:
                other = "f1_macro" if name == "f1" else "balanced_accuracy"
                raise ConfigError(f"metric {name!r} wants 2 labels, not {labels}; use {other!r}")

    def evaluate(
        self,
        model: Model,
        source: Stream | Iterable[Batch],
        batch_size: int = 64,
        groups: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Return metric values of `model`, by name, and by "name/group" where rows have groups.

        Of several targets, "name" is the mean over them and "name/target" the value of one. A
        target of which the rows say nothing (no values; for some metrics, one answer only) has no
        value and no part in the mean, and "name_skipped" counts such targets where there are any.

        The model is called without gradients; setting it to evaluation mode is the caller's part.

        Args:
            model: batch -> outputs `(B, outputs)`.
            source: a stream, of which every row is used once, or batches.
            batch_size: rows at a time; with a stream, rows of like length go together.
            groups: group of each row of the source; the stream's own when None.

        Raises:
            InputError: rows without targets, no rows, or a metric that no target has a value of.
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

    def scored(self, outputs: NDArray[Any], targets: NDArray[Any]) -> dict[str, Scored]:
        """Return the rows of each target as metrics see them: those that have a value of it.

        Values of a regression are back in the data's units. Classification has the one target "";
        of a multilabel task each label is one.
        """
        signature = self.signature
        if outputs.ndim != 2 or outputs.shape[1] != signature.outputs:
            raise InputError(
                f"outputs of shape {outputs.shape} do not fit {signature.outputs} output(s) a row"
            )
        if signature.kind == "classification":
            return {"": Scored(outputs, targets, signature.labels)}
        targets = targets.reshape(outputs.shape).astype(np.float64)
        if signature.kind == "regression":
            mean, std = np.asarray(signature.target_mean), np.asarray(signature.target_std)
            outputs, targets = outputs * std + mean, targets * std + mean
        names = signature.labels if signature.kind == "multilabel" else signature.targets
        yes_no = signature.kind != "regression"
        return {
            name: Scored(outputs[:, i], targets[:, i], (), yes_no) for i, name in enumerate(names)
        }

    def values(
        self, scored: Mapping[str, Scored], groups: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Return metric values of all rows, then of each group.

        Raises:
            InputError: a metric has no value on all the rows.
        """
        out: dict[str, float] = {}
        for name in self.metrics:
            found = _values(name, "", scored)
            if f"{name}_skipped" in found and name not in found:
                raise InputError(
                    f"metric {name!r} has no value: no target has rows that it can be told from "
                    f"({METRICS[name].needs}); evaluate on other rows or leave it out"
                )
            out.update(found)
        if groups is not None:
            names = np.asarray(groups)
            for group in sorted(set(groups)):
                part = {target: rows.take(names == group) for target, rows in scored.items()}
                for name in self.metrics:
                    out.update(_values(name, f"/{group}", part))
        return out


def _values(name: str, suffix: str, scored: Mapping[str, Scored]) -> dict[str, float]:
    """Return a metric's mean over the targets that it has a value of, and that of each."""
    metric = METRICS[name]
    found = {target: metric(rows) for target, rows in scored.items()}
    kept = {target: value for target, value in found.items() if value is not None}
    out: dict[str, float] = {}
    if len(scored) == 1:
        for value in kept.values():
            out.update(_named(f"{name}{suffix}", value))
    elif kept:
        numbers = {target: cast("float", value) for target, value in kept.items()}
        out[f"{name}{suffix}"] = float(np.mean(list(numbers.values())))
        out.update({f"{name}{suffix}/{target}": value for target, value in numbers.items()})
    if len(kept) < len(found):
        out[f"{name}_skipped{suffix}"] = float(len(found) - len(kept))
    return out


def _named(name: str, value: Value) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {f"{name}/{key}": item for key, item in value.items()}
    return {name: value}
