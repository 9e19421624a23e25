"""Columns of a table that name categories: names to codes, the same at training and prediction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graftwork._errors import InputError


def category_text(value: Any) -> str | None:
    """Return a category as text; None where it is missing (None, NaN, blank).

    Example:
        >>> [category_text(v) for v in ("red ", 3.0, 3, True, float("nan"), "")]
        ['red', '3', '3', 'true', None, None]
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def names_of(values: Iterable[Any]) -> tuple[str, ...]:
    """Return the different categories of a column, sorted, without missing ones.

    Example:
        >>> names_of(["red", "blue", "", "red"])
        ('blue', 'red')
    """
    return tuple(sorted({text for v in values if (text := category_text(v)) is not None}))


def codes_of(values: Iterable[Any], names: Sequence[str]) -> NDArray[np.int64]:
    """Return 1, 2, ... for the names in their order, 0 for missing values and any other name.

    Example:
        >>> codes_of(["red", "green", None], ("blue", "red")).tolist()
        [2, 0, 0]
    """
    known = {name: code for code, name in enumerate(names, start=1)}
    return np.asarray([known.get(category_text(v) or "", 0) for v in values], dtype=np.int64)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, or text that reads as one.

    Example:
        >>> [is_number(v) for v in (3, "4.5", "1e3", "nan", "red", True, None)]
        [True, True, True, False, False, False, False]
    """
    if isinstance(value, bool | np.bool_) or value is None:
        return False
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def check_categories(categories: Sequence[Sequence[str]], shape: Sequence[int]) -> None:
    """Raise unless there are none, or one tuple of different names for each column.

    Raises:
        InputError: names the counts.
    """
    if categories and (len(shape) != 1 or len(categories) != shape[0]):
        raise InputError(
            f"categories of {len(categories)} column(s) do not fit rows of shape {tuple(shape)}"
        )
    for names in categories:
        if len(set(names)) < len(names):
            raise InputError(f"a column names a category twice: {list(names)[:8]}")
