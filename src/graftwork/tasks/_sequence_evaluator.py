"""Evaluation of tasks whose outputs go position by position: words with labels, and texts.

Shape legend: B rows, L positions, C labels or vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graftwork._batch import Batch
from graftwork._errors import ConfigError, InputError, UnknownNameError
from graftwork.objectives import IGNORED, Model
from graftwork.tasks._evaluator import Evaluator
from graftwork.tasks._ranking import Directed, Ranking
from graftwork.tasks._scorer import Scorer
from graftwork.tasks._sequence_metrics import SEQUENCE_METRICS, ScoredRow, default_metrics
from graftwork.tasks._signature import SEQUENCES, Signature
from graftwork.tasks._stream import Stream, TableStream


@dataclass(frozen=True, slots=True)
class SequenceEvaluator(Ranking):
    """Which metrics a task of words or texts has; it is the `Scorer` of such tables.

    Of the outputs of a batch only losses and predictions at positions with a target are kept.

    Args:
        signature: kind and labels.
        metrics: keys of `SEQUENCE_METRICS`; the first decides which model is best. Empty: entity_f1
            (f1_macro where labels are not O, B-type and I-type), accuracy and loss for words; loss,
            perplexity and accuracy for texts.

    Raises:
        UnknownNameError: no such metric.
        ConfigError: a metric of another kind of task or of other labels.
    """

    known: ClassVar[Mapping[str, Directed]] = SEQUENCE_METRICS
    signature: Signature
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind, labels = self.signature.kind, self.signature.labels
        if kind not in SEQUENCES:
            raise ConfigError(f"kind {kind!r} has one output a row; take an Evaluator")
        defaults = default_metrics(kind, labels)
        if not self.metrics:
            object.__setattr__(self, "metrics", defaults)
        for name in self.metrics:
            if name not in SEQUENCE_METRICS:
                raise UnknownNameError("metric", name, SEQUENCE_METRICS)
            metric = SEQUENCE_METRICS[name]
            if kind not in metric.kinds:
                known = sorted(n for n, m in SEQUENCE_METRICS.items() if kind in m.kinds)
                raise ConfigError(f"metric {name!r} does not go with {kind}; use one of {known}")
            if metric.entities and defaults[0] != "entity_f1":
                raise ConfigError(
                    f"metric {name!r} wants labels O, B-type and I-type, not {labels}; use "
                    "'f1_macro'"
                )

    def evaluate(
        self,
        model: Model,
        source: Stream | Iterable[Batch],
        batch_size: int = 64,
        groups: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Return metric values of `model`, by name, and by "name/group" where rows have groups.

        Where rows are longer than the signature's `max_length`, "cut" counts the words or tokens
        that were left out: the metrics say nothing of them.

        Args:
            model: batch -> logits `(B, L, C)`; called without gradients.
            source: a stream, of which every row is used once, or batches.
            batch_size: rows at a time; with a stream, rows of like length go together.
            groups: group of each row of the source; the stream's own when None.

        Raises:
            InputError: rows without targets, or no rows.
        """
        cut = source.cut if isinstance(source, TableStream) else 0
        if isinstance(source, Stream):
            groups = groups or source.groups
            source = source.once(batch_size, by_length=True)
        rows: dict[int, ScoredRow] = {}
        with torch.no_grad():
            for batch in source:
                if batch.targets is None:
                    raise InputError("these rows have no targets: the label column is absent")
                found = _scored(model(batch), batch.targets)
                rows.update(zip(batch.rows.tolist(), found, strict=True))
        if not any(len(row.targets) for row in rows.values()):
            raise InputError("there are no rows with targets to evaluate on")
        values = self._values([rows[number] for number in sorted(rows)], "")
        if cut:
            values["cut"] = float(cut)
        for group in sorted(set(groups or ())):
            part = [rows[number] for number in sorted(rows) if (groups or ())[number] == group]
            values.update(self._values(part, f"/{group}"))
        return values

    def _values(self, rows: Sequence[ScoredRow], suffix: str) -> dict[str, float]:
        if not any(len(row.targets) for row in rows):
            return {}
        labels = self.signature.labels
        return {
            f"{name}{suffix}": SEQUENCE_METRICS[name].function(rows, labels)
            for name in self.metrics
        }


def _scored(outputs: Tensor, targets: Tensor) -> Iterator[ScoredRow]:
    if outputs.dim() != 3 or outputs.shape[:2] != targets.shape:
        raise InputError(
            f"outputs of shape {tuple(outputs.shape)} do not fit targets {tuple(targets.shape)}; "
            "logits (rows, positions, labels) are needed"
        )
    for logits, wanted in zip(outputs, targets.to(outputs.device), strict=True):
        # Row by row, so that logits of a large vocabulary are widened for one row at a time.
        present = wanted != IGNORED
        chosen, right = logits[present].double(), wanted[present]
        yield ScoredRow(
            functional.cross_entropy(chosen, right, reduction="none").cpu().numpy(),
            chosen.argmax(1).cpu().numpy().astype(np.int64),
            right.cpu().numpy(),
        )


def scorer_for(signature: Signature, metrics: tuple[str, ...] = ()) -> Scorer:
    """Return what measures tables of the signature's kind.

    Raises:
        UnknownNameError: no such metric.
        ConfigError: a metric of another kind of task, or a kind without metrics.
    """
    if signature.kind in SEQUENCES:
        return SequenceEvaluator(signature, metrics)
    return Evaluator(signature, metrics)
