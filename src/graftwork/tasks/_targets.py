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
    try:
        return tuple(sorted(labels, key=float))
    except ValueError:
        return tuple(sorted(labels))


def numbers_of(table: Table, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column of finite numbers, `(rows,)` float64.

    Raises:
        UnknownNameError: no such column.
        InputError: a value is missing or not a finite number; names the row and the value.
    """
    out, missing = np.empty(len(table)), []
    for row, value in enumerate(table[column]):
        text = label_text(value)
        if text is None:
            missing.append(row)
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
    _check_missing(table, column, missing)
    return out


def _check_missing(table: Table, column: str, rows: list[int]) -> None:
    if not rows:
        return
    shown = "; ".join(table.where(row) for row in rows[:SHOWN]) + ("; ..." if rows[SHOWN:] else "")
    raise InputError(
        f"{len(rows)} of {len(table)} values in column {column!r} are missing or NaN ({shown}); "
        "fill them or drop these rows"
    )


def encode_targets(table: Table, signature: Signature) -> Tensor | None:
    """Return the targets of all rows, or None where the table has no target column.

    Returns:
        `(rows,)`: int64 index into `signature.labels`, or float32 standardised values.

    Raises:
        UnknownNameError: a label is not in the signature; names the row.
        InputError: targets are missing or not numbers.
    """
    if signature.target not in table:
        return None
    if signature.kind == "regression":
        values = numbers_of(table, signature.target)
        scaled = (values - signature.target_mean) / signature.target_std
        return torch.from_numpy(scaled.astype(np.float32))
    index = {label: i for i, label in enumerate(signature.labels)}
    out = torch.empty(len(table), dtype=torch.int64)
    for row, label in enumerate(label_column(table, signature.target)):
        if label not in index:
            what = f"label ({table.where(row)}, column {signature.target!r})"
            raise UnknownNameError(what, label, signature.labels)
        out[row] = index[label]
    return out
