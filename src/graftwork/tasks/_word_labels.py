"""Labels of words: from a column to targets at the first token of each word."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from graftwork._errors import InputError, UnknownNameError
from graftwork.objectives import IGNORED
from graftwork.tasks._sequences import Ragged, WordTokens
from graftwork.tasks._signature import Signature
from graftwork.tasks._table import Table
from graftwork.tasks._targets import label_text, sorted_labels


def word_labels(table: Table, column: str) -> list[list[str]]:
    """Return the labels of each row's words: a list, or a text that white space or commas part.

    Raises:
        UnknownNameError: no such column.
        InputError: labels are missing; names the row.

    Example:
        >>> word_labels(Table({"tags": ["B-PER O", "O, O", [1, 0]]}), "tags")
        [['B-PER', 'O'], ['O', 'O'], ['1', '0']]
    """
    return [_labels(value, table.where(row), column) for row, value in enumerate(table[column])]


def _labels(value: Any, where: str, column: str) -> list[str]:
    if isinstance(value, str):
        parts: list[Any] = re.split(r"\s*,\s*|\s+", value.strip())
    elif isinstance(value, list | tuple | np.ndarray):
        parts = list(value)
    else:
        raise InputError(
            f"{where}: column {column!r} has {value!r}; give a list of labels, one a word, or a "
            "text in which white space or commas part them"
        )
    labels = [label_text(part) for part in parts]
    found = [label for label in labels if label is not None]
    if len(found) < len(labels) or not found:
        raise InputError(
            f"{where}: column {column!r} has {value!r}, where a label is blank or missing; mend it"
        )
    return found


def word_labels_of(table: Table, column: str) -> tuple[str, ...]:
    """Return the different labels of words, sorted: as numbers where all are, else as text.

    Raises:
        InputError: labels are missing, or there is one only.
    """
    labels = {label for row in word_labels(table, column) for label in row}
    if len(labels) < 2:
        raise InputError(
            f"{table.source}: the words of all {len(table)} rows have the labels {sorted(labels)} "
            f"in column {column!r}; at least 2 are needed"
        )
    return sorted_labels(labels)


def word_targets(table: Table, signature: Signature, words: WordTokens) -> Ragged:
    """Return the index of a word's label at its first token, `IGNORED` at all other positions.

    Raises:
        InputError: a row has more or fewer labels than words.
        UnknownNameError: a label is not in the signature.
    """
    (column,) = signature.targets
    index = {label: i for i, label in enumerate(signature.labels)}
    out = []
    for row, labels in enumerate(word_labels(table, column)):
        places = words.places.row(row)
        if len(labels) != len(places):
            raise InputError(
                f"{table.where(row)}: {len(places)} words in column {signature.fields[0]!r}, but "
                f"{len(labels)} labels in column {column!r}; give one label a word"
            )
        for label in labels:
            if label not in index:
                what = f"label ({table.where(row)}, column {column!r})"
                raise UnknownNameError(what, label, signature.labels)
        targets = np.full(int(words.lengths[row]), IGNORED, dtype=np.int64)
        kept = places >= 0
        targets[places[kept]] = np.asarray([index[label] for label in labels])[kept]
        out.append(targets)
    return Ragged.of(out)
