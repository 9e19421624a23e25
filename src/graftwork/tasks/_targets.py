"""Labels and values: from a column of a table to a tensor, with errors that name rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graftwork._errors import InputError, UnknownNameError
from graftwork.tasks._signature import Signature
from graftwork.tasks._table import Table

SHOWN = 5
"""Row numbers that an error lists."""


def label_text(value: Any) -> str | None:
    """Return a label as text; None where it is missing (None, NaN, "nan", blank).

    `True` gives "true"; whole numbers lose their ".0", so that 1, 1.0 and "1" are one label.

    Example:
        >>> [label_text(v) for v in (1, 1.0, "1", True, " pos ", float("nan"), "")]
        ['1', '1', '1', 'true', 'pos', None, None]
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    return None if text.lower() in ("", "nan") else text


def label_column(table: Table, column: str) -> list[str]:
    """Return the labels of all rows as text.

    Raises:
        UnknownNameError: no such column.
        InputError: labels are missing; names their count and first rows.
    """
    labels = [label_text(value) for value in table[column]]
    _check_missing(table, column, [row for row, label in enumerate(labels) if label is None])
    return [label for label in labels if label is not None]


def labels_of(table: Table, column: str) -> tuple[str, ...]:
    """Return the different labels, sorted: as numbers where all are, else as text.

    Raises:
        InputError: labels are missing, there are no rows, or there is one label only.

    Example:
        >>> labels_of(Table({"y": [10, 2, 2]}), "y")
        ('2', '10')
    """
    labels = set(label_column(table, column))
    if not labels:
        raise InputError(f"{table.source} has no rows; give at least one of each label")
    if len(labels) == 1:
        raise InputError(
            f"{table.source}: all {len(table)} rows have the one label {labels.pop()!r} in column "
            f"{column!r}; a classifier needs 2 or more"
        )
    return sorted_labels(labels)


def sorted_labels(labels: set[str]) -> tuple[str, ...]:
    """Return labels sorted: as numbers where all are, else as text."""
    try:
        return tuple(sorted(labels, key=float))
    except ValueError:
        return tuple(sorted(labels))


def numbers_of(
    table: Table, column: str, *, missing: bool = False
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column of finite numbers, `(rows,)` float64.

    Args:
        table: the rows.
        column: its name.
        missing: whether None, NaN and blanks are let through, as NaN.

    Raises:
        UnknownNameError: no such column.
        InputError: a value is missing or not a finite number; names the row and the value.
    """
    out, absent = np.full(len(table), np.nan), []
    for row, value in enumerate(table[column]):
        text = label_text(value)
        if text is None:
            absent.append(row)
            continue
        try:
            out[row] = float(text)
        except ValueError as error:
            raise InputError(
                f"{table.where(row)}: column {column!r} has {value!r}, which is not a number; "
                "mend it, or use kind 'classification' if these are labels"
            ) from error
        if not math.isfinite(out[row]):
            raise InputError(f"{table.where(row)}: column {column!r} has {value!r}: not finite")
    if not missing:
        _check_missing(table, column, absent)
    return out


YES_OR_NO = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}
"""Words of yes/no targets, in small letters, where the signature names none."""


def answers_of(
    table: Table, column: str, labels: tuple[str, ...] = (), *, missing: bool = False
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column of yes/no answers, `(rows,)` float64: 1 for yes, 0 for no.

    Args:
        table: the rows.
        column: its name.
        labels: the words for no and yes; empty: those of `YES_OR_NO`.
        missing: whether None, NaN and blanks are let through, as NaN.

    Raises:
        UnknownNameError: no such column, or another word; names the row.
        InputError: an answer is missing.

    Example:
        >>> answers_of(Table({"toxic": [True, "no", 1.0]}), "toxic").tolist()
        [1.0, 0.0, 1.0]
    """
    known = dict(zip(labels, (0.0, 1.0), strict=True)) if labels else YES_OR_NO
    out, absent = np.full(len(table), np.nan), []
    for row, value in enumerate(table[column]):
        text = label_text(value)
        if text is None:
            absent.append(row)
            continue
        word = text if labels else text.lower()
        if word not in known:
            raise UnknownNameError(f"answer ({table.where(row)}, column {column!r})", text, known)
        out[row] = known[word]
    if not missing:
        _check_missing(table, column, absent)
    return out


def _check_missing(table: Table, column: str, rows: list[int]) -> None:
    if not rows:
        return
    raise InputError(
        f"{len(rows)} of {len(table)} values in column {column!r} are missing or NaN "
        f"({_shown(table, rows)}); fill them or drop these rows"
    )


def _shown(table: Table, rows: list[int]) -> str:
    return "; ".join(table.where(row) for row in rows[:SHOWN]) + ("; ..." if rows[SHOWN:] else "")


def spread_of(table: Table, column: str, *, missing: bool = False) -> tuple[float, float]:
    """Return mean and standard deviation of the numbers in a column.

    Args:
        table: the rows.
        column: its name.
        missing: whether absent values are passed over.

    Raises:
        InputError: no values, or all of them equal.
    """
    values = numbers_of(table, column, missing=missing)
    values = values[~np.isnan(values)]
    _check_different(table, column, values, "a regression needs different ones")
    return float(values.mean()), float(values.std())


def check_answers(
    table: Table, column: str, labels: tuple[str, ...], *, missing: bool = False
) -> None:
    """Raise InputError unless a column holds both yes and no."""
    values = answers_of(table, column, labels, missing=missing)
    words = np.asarray(labels or ("0", "1"))
    present = values[~np.isnan(values)].astype(np.int64)
    _check_different(table, column, words[present], "a yes/no target needs both answers")


def _check_different(table: Table, column: str, values: Any, need: str) -> None:
    if not len(values):
        raise InputError(f"{table.source}: no row has a value in column {column!r}; leave it out")
    if (values == values[0]).all():
        raise InputError(
            f"{table.source}: all {len(values)} values in column {column!r} are {values[0]}; {need}"
        )


def label_sets(table: Table, column: str) -> list[tuple[str, ...]]:
    """Return the labels of each row; a row may have none.

    A cell is a list of labels, or a text in which commas part them; blank and `[]` are no label.

    Raises:
        UnknownNameError: no such column.
        InputError: a cell is None or NaN, or a list holds such or a blank; names the row.

    Example:
        >>> label_sets(Table({"tags": ["war, love", "", ["sci-fi, space"]]}), "tags")
        [('war', 'love'), (), ('sci-fi, space',)]
    """
    rows, absent = [], []
    for row, value in enumerate(table[column]):
        parts = _parts_of(value)
        if parts is None:
            absent.append(row)
            continue
        found = [label_text(part) for part in parts]
        if None in found:
            raise InputError(
                f"{table.where(row)}: column {column!r} has {value!r}, where a label is blank or "
                "missing; mend it"
            )
        rows.append(tuple(dict.fromkeys(label for label in found if label is not None)))
    if absent:
        raise InputError(
            f"{len(absent)} of {len(table)} values in column {column!r} are missing or NaN "
            f"({_shown(table, absent)}); a row without labels has an empty text or []"
        )
    return rows


def _parts_of(value: Any) -> list[Any] | None:
    """Return the single labels in a cell; None where nothing is said."""
    if isinstance(value, list | tuple | np.ndarray):
        return list(value)
    if isinstance(value, str):
        return value.split(",") if value.strip() else []
    text = label_text(value)
    return None if text is None else [text]


def labels_within(table: Table, column: str) -> tuple[str, ...]:
    """Return the different labels that rows have, sorted as by `labels_of`.

    Raises:
        InputError: no row has a label, or a cell is missing.
    """
    labels = {label for row in label_sets(table, column) for label in row}
    if not labels:
        raise InputError(f"{table.source}: no row has a label in column {column!r}")
    return sorted_labels(labels)


def check_label_sets(table: Table, column: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels of a multilabel task: those given, else those that rows have.

    Raises:
        InputError: a label is in all rows, or in none: nothing can be learnt of it.
    """
    rows = label_sets(table, column)
    labels = labels or labels_within(table, column)
    for label in labels:
        count = sum(label in row for row in rows)
        if count in (0, len(rows)):
            raise InputError(
                f"{table.source}: {count} of {len(rows)} rows have the label {label!r} in column "
                f"{column!r}; to be learnt, some must have it and some not"
            )
    return labels


def check_labelled(table: Table, targets: tuple[str, ...]) -> None:
    """Raise InputError where a row has none of several targets: nothing can be learnt from it."""
    columns = [table[name] for name in targets]
    empty = [
        row
        for row in range(len(table))
        if all(label_text(values[row]) is None for values in columns)
    ]
    if empty:
        raise InputError(
            f"{len(empty)} of {len(table)} rows have a value for none of the targets "
            f"{list(targets)} ({_shown(table, empty)}); drop them"
        )


def encode_targets(table: Table, signature: Signature) -> Tensor | None:
    """Return the targets of all rows, or None where the table has no target column.

    Returns:
        Classification: `(rows,)` int64 index into `signature.labels`. Regression of one target:
        `(rows,)` float32 standardised values; of T targets: `(rows, T)`, NaN where missing.
        Binary: `(rows, T)` float32, 1 for yes; NaN where one of several is missing. Multilabel:
        `(rows, labels)` float32, 1 for a label that the row has.

    Raises:
        UnknownNameError: some target columns are there and one is not, or a label is not in the
            signature; names the row.
        InputError: targets are missing or not numbers.
    """
    if not any(name in table for name in signature.targets):
        return None
    if signature.kind == "classification":
        return _label_indices(table, signature)
    if signature.kind == "multilabel":
        return _memberships(table, signature)
    several = len(signature.targets) > 1
    if signature.kind == "binary":
        labels = signature.labels
        columns = [answers_of(table, t, labels, missing=several) for t in signature.targets]
    else:
        columns = [
            (numbers_of(table, name, missing=several) - mean) / std
            for name, mean, std in zip(
                signature.targets, signature.target_mean, signature.target_std, strict=True
            )
        ]
    values = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
    return values[:, 0] if signature.kind == "regression" and not several else values


def _label_indices(table: Table, signature: Signature) -> Tensor:
    (target,) = signature.targets
    index = {label: i for i, label in enumerate(signature.labels)}
    out = torch.empty(len(table), dtype=torch.int64)
    for row, label in enumerate(label_column(table, target)):
        if label not in index:
            what = f"label ({table.where(row)}, column {target!r})"
            raise UnknownNameError(what, label, signature.labels)
        out[row] = index[label]
    return out


def _memberships(table: Table, signature: Signature) -> Tensor:
    (target,) = signature.targets
    index = {label: i for i, label in enumerate(signature.labels)}
    out = torch.zeros(len(table), len(index))
    for row, labels in enumerate(label_sets(table, target)):
        for label in labels:
            if label not in index:
                what = f"label ({table.where(row)}, column {target!r})"
                raise UnknownNameError(what, label, signature.labels)
            out[row, index[label]] = 1.0
    return out
