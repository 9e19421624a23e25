"""Metrics of rows whose positions have targets: the explicit table `SEQUENCE_METRICS`.

As of other metrics, none is ever NaN: where there is neither an entity nor a prediction of one, F1,
precision and recall are 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

OUTSIDE = "O"
_INSIDE = re.compile(r"([BI])-(.+)")

Entity = tuple[int, int, str]
"""First word, word after the last, type."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRow:
    """The positions of one row that have a target, in order.

    Attributes:
        losses: `(n,)` cross-entropies in nats.
        predicted: `(n,)` index of the most probable label or token.
        targets: `(n,)` index of the right one.
    """

    losses: NDArray[np.float64]
    predicted: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SequenceMetric:
    """A metric over rows.

    Attributes:
        function: (rows, labels of the signature) -> value.
        direction: whether more ("max") or less ("min") is better.
        kinds: the kinds of task that have it.
        entities: whether it needs labels B-type, I-type and O.
    """

    function: Callable[[Sequence[ScoredRow], tuple[str, ...]], float]
    direction: Literal["max", "min"]
    kinds: tuple[str, ...]
    entities: bool = False


def is_bio(labels: Sequence[str]) -> bool:
    """Return whether labels mark entities: each "O", "B-type" or "I-type", and at least one type.

    Example:
        >>> is_bio(("B-PER", "I-PER", "O")), is_bio(("NOUN", "O")), is_bio(("O",))
        (True, False, False)
    """
    inside = [label for label in labels if label != OUTSIDE]
    return bool(inside) and all(_INSIDE.fullmatch(label) for label in inside)


def entities_of(labels: Sequence[str]) -> list[Entity]:
    """Return the entities that labels of words mark.

    An entity begins at "B-type", and also at "I-type" where no entity of that type goes on: the
    rule of conlleval (Tjong Kim Sang and Buchholz, 2000), which reads IOB1 and IOB2 alike.

    Example:
        >>> entities_of(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
        [(0, 2, 'PER'), (3, 4, 'LOC'), (4, 5, 'LOC')]
    """
    found: list[Entity] = []
    first, type_now = 0, ""
    for place, label in enumerate([*labels, OUTSIDE]):
        mark, _, kind = label.partition("-")
        if mark == "I" and kind == type_now:
            continue
        if type_now:
            found.append((first, place, type_now))
        first, type_now = place, kind if mark in ("B", "I") else ""
    return found


def _counts(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> tuple[int, int, int]:
    """Return how many entities are right, predicted and there."""
    right = predicted = there = 0
    for row in rows:
        said, true = (
            set(entities_of([labels[i] for i in ids])) for ids in (row.predicted, row.targets)
        )
        right += len(said & true)
        predicted += len(said)
        there += len(true)
    return right, predicted, there


def _entity_f1(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> float:
    right, predicted, there = _counts(rows, labels)
    return 2 * right / (predicted + there) if predicted + there else 0.0


def _entity_precision(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> float:
    right, predicted, _ = _counts(rows, labels)
    return right / predicted if predicted else 0.0


def _entity_recall(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> float:
    right, _, there = _counts(rows, labels)
    return right / there if there else 0.0


def _flat(rows: Sequence[ScoredRow], name: str) -> NDArray[Any]:
    return np.concatenate([getattr(row, name) for row in rows])


def _accuracy(rows: Sequence[ScoredRow], _labels: tuple[str, ...]) -> float:
    return float((_flat(rows, "predicted") == _flat(rows, "targets")).mean())


def _f1_macro(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> float:
    predicted, targets = _flat(rows, "predicted"), _flat(rows, "targets")
    scores = []
    for index in range(len(labels)):
        said, true = predicted == index, targets == index
        total = int(said.sum() + true.sum())
        scores.append(2 * int((said & true).sum()) / total if total else 0.0)
    return float(np.mean(scores))


def _loss(rows: Sequence[ScoredRow], _labels: tuple[str, ...]) -> float:
    return float(_flat(rows, "losses").mean())


def _perplexity(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> float:
    # Beyond 700 nats e to that power is no number of 64 bits.
    return math.exp(min(_loss(rows, labels), 700.0))


_WORDS, _TEXT = ("tokens",), ("text",)

SEQUENCE_METRICS: dict[str, SequenceMetric] = {
    "entity_f1": SequenceMetric(_entity_f1, "max", _WORDS, entities=True),
    "entity_precision": SequenceMetric(_entity_precision, "max", _WORDS, entities=True),
    "entity_recall": SequenceMetric(_entity_recall, "max", _WORDS, entities=True),
    "f1_macro": SequenceMetric(_f1_macro, "max", _WORDS),
    "accuracy": SequenceMetric(_accuracy, "max", _WORDS + _TEXT),
    "perplexity": SequenceMetric(_perplexity, "min", _TEXT),
    "loss": SequenceMetric(_loss, "min", _WORDS + _TEXT),
}
"""Metric name -> function, direction and the kinds of task that have it.

All are taken over all words, tokens or entities together, however they are spread over rows:
"accuracy" is the share of words or learnt tokens that are right (of a text, each told after the
right ones before it), "loss" the mean cross-entropy in nats, "perplexity" e to the power of it, and
an entity is right where its words and its type are. "f1_macro" is the mean over the labels.
"""


def default_metrics(kind: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the metrics where none are named; the first decides which model is best.

    Example:
        >>> default_metrics("tokens", ("B-PER", "O")), default_metrics("text", ())
        (('entity_f1', 'accuracy', 'loss'), ('loss', 'perplexity', 'accuracy'))
    """
    if kind == "text":
        return ("loss", "perplexity", "accuracy")
    return ("entity_f1" if is_bio(labels) else "f1_macro", "accuracy", "loss")
