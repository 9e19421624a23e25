"""Texts of a table's rows, by columns or templates, and their tokens."""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from graftwork._errors import InputError
from graftwork.tasks._call_spec import CallSpec, TaskBase
from graftwork.tasks._encoded import Tokens
from graftwork.tasks._table import Table


def template_fields(template: str) -> tuple[str, ...]:
    """Return the columns that a template names, in order.

    Raises:
        InputError: the template is malformed, names no column, or holds more than `{column}`.

    Example:
        >>> template_fields("{title}. {body}")
        ('title', 'body')
    """
    return tuple(name for _, name in _parse(template) if name is not None)


def _parse(template: str) -> list[tuple[str, str | None]]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"template {template!r}: {error}; write '{{column}}'") from error
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise InputError(f"template {template!r}: only '{{column}}' is known, no ':' or '!'")
    pairs = [(text, name) for text, name, _, _ in parts]
    if any(name == "" for _, name in pairs) or all(name is None for _, name in pairs):
        raise InputError(f"template {template!r} names no column; write '{{column}}'")
    return pairs


def texts_of(spec: CallSpec, table: Table) -> list[list[str]]:
    """Return the texts of all rows, one list for each template (or field).

    Raises:
        UnknownNameError: a column is not in the table.
        InputError: a value is missing or is not text; names the row and the column.
    """
    columns = {name: text_column(table, name) for name in spec.fields}
    if not spec.template:
        return [columns[name] for name in spec.fields]
    out = []
    for template in spec.template:
        texts = [""] * len(table)
        for literal, name in _parse(template):
            values = columns[name] if name is not None else [""] * len(table)
            texts = [text + literal + value for text, value in zip(texts, values, strict=True)]
        out.append(texts)
    return out


def text_column(table: Table, name: str) -> list[str]:
    """Return a column as texts; numbers are written out.

    Raises:
        UnknownNameError: no such column.
        InputError: a value is missing or is not text; names the row.
    """
    values = table[name]
    if isinstance(values, list) and all(type(value) is str for value in values):
        return values
    return [_as_text(value, row, name, table) for row, value in enumerate(values)]


def _as_text(value: Any, row: int, name: str, table: Table) -> str:
    plain = value.item() if isinstance(value, np.generic) else value
    missing = plain is None or (isinstance(plain, float) and plain != plain)
    if missing or not isinstance(plain, str | int | float):
        what = "is missing" if missing else f"is a {type(plain).__name__}, not text"
        raise InputError(f"{table.where(row)}: column {name!r} {what}; fill or drop the row")
    return str(plain)


def tokenizer_of(base: TaskBase) -> Any:
    """Return the base's tokenizer.

    Raises:
        InputError: it has none.
    """
    if base.tokenizer is None:
        raise InputError(
            "the base has no tokenizer, so it cannot read text; use the call 'array' with arrays "
            "that the module takes, or load a base with a tokenizer"
        )
    return base.tokenizer


def tokenize(base: TaskBase, spec: CallSpec, texts: list[str], pairs: list[str] | None) -> Any:
    """Return the encoding of texts or pairs, cut to the signature's length.

    Raises:
        InputError: the base has no tokenizer.
    """
    return tokenizer_of(base)(
        texts,
        pairs,
        padding=False,
        truncation=spec.max_length is not None,
        max_length=spec.max_length,
        return_attention_mask=False,
    )


def tokens_of(base: TaskBase, encoding: Mapping[str, list[list[int]]], sides: int) -> Tokens:
    """Return an encoding of `sides` texts a row, the first text of all rows before the second."""
    sizes = np.asarray([len(ids) for ids in encoding["input_ids"]], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    flat = {
        key: np.fromiter(itertools.chain.from_iterable(rows), np.int32, count=int(sizes.sum()))
        for key, rows in encoding.items()
        if key != "attention_mask"
    }
    pads = dict.fromkeys(flat, 0)
    # Some causal models have no padding token; 0 will do, since the mask hides it.
    pads["input_ids"] = getattr(base.tokenizer, "pad_token_id", None) or 0
    shape = (sides, -1)
    return Tokens(flat, starts.reshape(shape).T, sizes.reshape(shape).T, pads, sides > 1)
