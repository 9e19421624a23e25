"""Metrics: the explicit table `METRICS`, each with its direction and its value where undefined.

No metric is ever NaN, so that results can be compared, stored as JSON and used to stop early:

* Pearson, Spearman and Matthews correlation are 0 where predictions or targets are constant, and
  below 2 rows: nothing can be said of an association;
* F1 of a class that is neither predicted nor present is 0; precision likewise;
* R2 is 0 where targets are constant;
* recall of a class without rows is left out.

Where nothing at all can be said, there is no value, and the evaluator counts that it skipped one:
of a target without values, and, for ROC AUC and average precision, of one answer only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graftwork._errors import InputError

Value = float | Mapping[str, float]
"""A number, or one a class."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Outputs and targets of one target on n rows, as metrics see them.

    Attributes:
        outputs: `(n, labels)` logits, `(n,)` predicted values in the units of the data, or `(n,)`
            logits of yes.
        targets: `(n,)` label indices, values in the units of the data, or 1 for yes; NaN where the
            row has none.
        labels: the labels; empty for regression and yes/no.
        yes_no: whether outputs are logits of yes.
    """

    outputs: NDArray[np.float64]
    targets: NDArray[Any]
    labels: tuple[str, ...]
    yes_no: bool = False

    @property
    def predicted(self) -> NDArray[Any]:
        """`(n,)` predicted label indices, answers, or values."""
        if self.yes_no:
            return np.asarray(self.outputs > 0, dtype=np.float64)
        return np.asarray(self.outputs.argmax(axis=1)) if self.labels else self.outputs

    @property
    def evidence(self) -> NDArray[Any]:
        """`(n,)` logit of yes, or of the second of two labels."""
        return self.outputs[:, 1] - self.outputs[:, 0] if self.labels else self.outputs

    def take(self, rows: NDArray[Any]) -> Scored:
        """Return the given rows."""
        return Scored(self.outputs[rows], self.targets[rows], self.labels, self.yes_no)

    def present(self) -> Scored:
        """Return the rows that have a target."""
        missing = np.isnan(self.targets)
        return self.take(~missing) if missing.any() else self


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        function: rows, all with a target -> value.
        direction: whether more ("max") or less ("min") is better.
        kinds: the kinds of task that have it.
        two_labels: whether it is of one positive class: of several labels it has no value.
        both: whether it needs rows of both answers.
    """

    function: Callable[[Scored], Value]
    direction: Literal["max", "min"]
    kinds: tuple[str, ...]
    two_labels: bool = False
    both: bool = False

    @property
    def needs(self) -> str:
        """What rows it needs, in words."""
        return "both answers are needed" if self.both else "at least one value is needed"

    def __call__(self, rows: Scored) -> Value | None:
        """Return the value on the rows that have a target; None where nothing can be said."""
        rows = rows.present()
        if not len(rows.targets) or (self.both and bool((rows.targets == rows.targets[0]).all())):
            return None
        return self.function(rows)


def _accuracy(rows: Scored) -> float:
    return float((rows.predicted == rows.targets).mean())


def _recall(rows: Scored) -> dict[str, float]:
    present = [(i, rows.targets == i) for i in range(len(rows.labels))]
    return {rows.labels[i]: float((rows.predicted[m] == i).mean()) for i, m in present if m.any()}


def _balanced_accuracy(rows: Scored) -> float:
    return float(np.mean(list(_recall(rows).values())))


def _f1_binary(rows: Scored) -> float:
    if not rows.yes_no and len(rows.labels) != 2:
        raise InputError(f"f1 wants 2 labels, not {len(rows.labels)}; use f1_macro")
    return _f1(rows, "binary", [1])


def _f1_macro(rows: Scored) -> float:
    return _f1(rows, "macro", list(range(len(rows.labels))))


def _f1(rows: Scored, average: str, labels: list[int]) -> float:
    from sklearn.metrics import f1_score

    extra = {} if average == "binary" else {"labels": labels}
    return float(
        f1_score(rows.targets, rows.predicted, average=average, zero_division=0.0, **extra)
    )


def _matthews(rows: Scored) -> float:
    from sklearn.metrics import matthews_corrcoef

    if _constant(rows):
        return 0.0
    return float(matthews_corrcoef(rows.targets, rows.predicted))


def _constant(rows: Scored) -> bool:
    predicted, targets = rows.predicted, rows.targets
    return len(targets) < 2 or any(bool((v == v[0]).all()) for v in (predicted, targets))


def _pearson(rows: Scored) -> float:
    from scipy.stats import pearsonr

    if _constant(rows):
        return 0.0
    # Centred and scaled first: SciPy warns of spreads that are small beside the mean.
    predicted, targets = (_standard(v) for v in (rows.predicted, rows.targets))
    return float(pearsonr(predicted, targets).statistic)


def _standard(values: NDArray[Any]) -> NDArray[np.float64]:
    centred = values.astype(np.float64) - values.mean()
    return np.asarray(centred / np.abs(centred).max())


def _spearman(rows: Scored) -> float:
    from scipy.stats import spearmanr

    return 0.0 if _constant(rows) else float(spearmanr(rows.predicted, rows.targets).statistic)


def _mse(rows: Scored) -> float:
    return float(((rows.predicted - rows.targets) ** 2).mean())


def _mae(rows: Scored) -> float:
    return float(np.abs(rows.predicted - rows.targets).mean())


def _rmse(rows: Scored) -> float:
    return float(np.sqrt(_mse(rows)))


def _roc_auc(rows: Scored) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(rows.targets, rows.evidence))


def _average_precision(rows: Scored) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(rows.targets, rows.evidence))


def _r2(rows: Scored) -> float:
    spread = float(rows.targets.var())
    return 1.0 - _mse(rows) / spread if spread > 0 else 0.0


def _loss(rows: Scored) -> float:
    if rows.yes_no:
        # Cross-entropy of the sigmoid, as a sum that does not overflow.
        return float((np.logaddexp(0, rows.outputs) - rows.targets * rows.outputs).mean())
    if not rows.labels:
        return _mse(rows)
    shifted = rows.outputs - rows.outputs.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return float((log_total - shifted[np.arange(len(shifted)), rows.targets]).mean())


_CLASSES, _VALUES, _ANSWERS = ("classification",), ("regression",), ("binary", "multilabel")

METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, "max", _CLASSES + _ANSWERS),
    "balanced_accuracy": Metric(_balanced_accuracy, "max", _CLASSES),
    "f1": Metric(_f1_binary, "max", _CLASSES + _ANSWERS, two_labels=True),
    "f1_macro": Metric(_f1_macro, "max", _CLASSES),
    "matthews": Metric(_matthews, "max", _CLASSES + _ANSWERS),
    "recall": Metric(_recall, "max", _CLASSES),
    "roc_auc": Metric(_roc_auc, "max", _CLASSES + _ANSWERS, two_labels=True, both=True),
    "average_precision": Metric(
        _average_precision, "max", _CLASSES + _ANSWERS, two_labels=True, both=True
    ),
    "pearson": Metric(_pearson, "max", _VALUES),
    "spearman": Metric(_spearman, "max", _VALUES),
    "mse": Metric(_mse, "min", _VALUES),
    "rmse": Metric(_rmse, "min", _VALUES),
    "mae": Metric(_mae, "min", _VALUES),
    "r2": Metric(_r2, "max", _VALUES),
    "loss": Metric(_loss, "min", _CLASSES + _VALUES + _ANSWERS),
}
"""Metric name -> function, direction and the kinds of task that have it.

"f1", "roc_auc" and "average_precision" take the second label, or yes, as the positive class;
"recall" gives one value a class; "loss" is the mean cross-entropy in nats, or the mean squared
error in the units of the data. Of several targets, or of the labels of a
multilabel task, each metric is the mean over them.
"""
