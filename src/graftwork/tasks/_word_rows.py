"""Rows of words: reading them, their tokens, and the hidden state at each position.

Shape legend: B rows, L positions, H width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from graftwork._errors import InputError, UnsupportedError
from graftwork.tasks._call_spec import CallSpec, Ports, TaskBase
from graftwork.tasks._pooling import HIDDEN_KEYS, VECTOR_KEYS, tensor_of
from graftwork.tasks._sequences import Ragged, WordTokens
from graftwork.tasks._table import Table
from graftwork.tasks._texts import tokenizer_of, tokens_of


def word_lists(table: Table, column: str) -> list[list[str]]:
    """Return the words of each row: a list as it is, or a text parted at white space.

    Raises:
        UnknownNameError: no such column.
        InputError: a row has no words, or a word is blank or no text; names the row.

    Example:
        >>> word_lists(Table({"words": ["Ada met Bob", ["New York", "!"]]}), "words")
        [['Ada', 'met', 'Bob'], ['New York', '!']]
    """
    return [_words(value, table.where(row), column) for row, value in enumerate(table[column])]


def _words(value: Any, where: str, column: str) -> list[str]:
    if isinstance(value, str):
        words: list[Any] = list(value.split())
    elif isinstance(value, list | tuple | np.ndarray):
        words = list(value)
    else:
        raise InputError(
            f"{where}: column {column!r} has {value!r}; give a list of words, or a text whose "
            "words white space parts"
        )
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise InputError(
                f"{where}: column {column!r} holds the word {word!r}, which is blank or no text; "
                "mend it, and the labels beside it"
            )
    if not words:
        raise InputError(f"{where}: column {column!r} has no words; drop the row")
    return words


def encode_words(spec: CallSpec, base: TaskBase, table: Table) -> WordTokens:
    """Return the tokens of all rows, and where each word begins among them.

    Raises:
        UnsupportedError: the tokenizer does not tell which word a token is of.
        InputError: the base has no tokenizer, or a row no words.
    """
    tokenizer = tokenizer_of(base)
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedError(
            f"{type(tokenizer).__name__} does not tell which word a token is of; words need a fast "
            "tokenizer (tokenizer.json)"
        )
    rows = word_lists(table, spec.fields[0])
    try:
        encoding = tokenizer(
            rows,
            is_split_into_words=True,
            padding=False,
            truncation=spec.max_length is not None,
            max_length=spec.max_length,
            return_attention_mask=False,
        )
    except (AssertionError, ValueError) as error:
        raise UnsupportedError(f"the tokenizer cannot read words: {error}") from error
    places = [_places(encoding.word_ids(row), len(words)) for row, words in enumerate(rows)]
    return WordTokens(tokens_of(base, encoding, 1), Ragged.of(places))


def _places(word_of: list[int | None], count: int) -> Any:
    """Return `(count,)` the first position of each word, -1 where it has none."""
    places = np.full(count, -1, dtype=np.int64)
    # Backwards, so that the first token of a word is written last.
    for position in range(len(word_of) - 1, -1, -1):
        word = word_of[position]
        if word is not None:
            places[word] = position
    return places


def run_words(
    spec: CallSpec, module: nn.Module, ports: Ports, inputs: Mapping[str, Tensor]
) -> Tensor:
    """Return what a head reads at each position, `(B, L, H)`; without one, the module's outputs.

    Raises:
        UnsupportedError: the module does not give a vector for each position.
    """
    del ports
    keys = VECTOR_KEYS if spec.head is None else HIDDEN_KEYS
    hidden = tensor_of(module(**inputs), keys)
    if hidden.dim() != 3 or hidden.shape[:2] != inputs["input_ids"].shape:
        raise UnsupportedError(
            f"the module gave {tuple(hidden.shape)} for tokens {tuple(inputs['input_ids'].shape)}; "
            "labels of words need (rows, positions, width)"
        )
    return hidden
