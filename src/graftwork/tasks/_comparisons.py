"""The generated task `comparisons`: word order decides, and no single word does.

Sentences are "x is C than y ." with noun phrases x, y and C one of "more adj", "less adj",
"not more adj", "not less adj". Each adjective ranks all nouns strictly, so "not more" means "less".
Types of pairs (premise A, hypothesis B), after Dasgupta, Guo, Stuhlmueller, Gershman and Goodman
(2018), section "Comparisons dataset":

* same: A "x is C than y"; entailment B = A, contradiction B "y is C than x";
* more-less: A "x is more adj than y"; entailment "y is less adj than x", contradiction
  "x is less adj than y"; the same with more and less exchanged;
* not: A "x is C than y" without a not; entailment "y is not C than x", contradiction
  "x is not C than y"; the same with the not in A instead;
* unrelated (ours; their set has two labels): B has one other noun phrase, or another adjective, so
  neither A nor word order says anything of it: neutral.

In the first three both members of a pair of pairs (same A, both labels) have the same words, so
a bag of words cannot part them.

A *context* is an unordered pair of noun phrases with an adjective. Every context belongs to one
split only, by a hash of its words, so no two splits share a pair whatever their sizes and seeds.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from graftwork._errors import InputError, UnknownNameError
from graftwork.tasks._pinned import integers, permutation
from graftwork.tasks._table import Table
from graftwork.tasks._words import (
    ADJECTIVES,
    HELD_OUT_ADJECTIVES,
    HELD_OUT_LONG,
    HELD_OUT_SHORT,
    LONG_NOUNS,
    SHORT_NOUNS,
)

Phrases = Literal["short", "long"]
COMPARISON_LABELS = ("contradiction", "neutral", "entailment")
COMPARISON_TYPES = ("same", "more-less", "not", "unrelated")
COMPARISON_SPLITS = ("train", "eval", "eval-words", "eval-length")
EVAL_SHARE = 10
"""One context in this many goes to "eval"."""

Degree = tuple[bool, str]
"""(negated, "more" or "less")."""
_DEGREES: tuple[Degree, ...] = ((False, "more"), (False, "less"), (True, "more"), (True, "less"))


@dataclass(frozen=True, slots=True)
class _Words:
    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    contexts: tuple[tuple[str, str, str], ...]
    """(x, y, adjective), both orders of the nouns."""


def comparisons(
    split: str,
    size: int,
    *,
    seed: int = 0,
    phrases: Phrases = "short",
    types: Sequence[str] = COMPARISON_TYPES,
) -> Table:
    """Return generated sentence pairs; see the module docstring for the rules.

    Args:
        split: "train"; "eval": other pairs of the same words; "eval-words": noun phrases and
            adjectives that no other split has; "eval-length": noun phrases of the other length.
        size: rows, a multiple of twice the number of types: types have equally many rows, and
            entailment and contradiction are exactly even in each contrast type.
        seed: another seed draws other rows of the same split. A larger size with the same seed
            begins, within each type, with the rows of a smaller one.
        phrases: length of the noun phrases to learn from.
        types: which types, from `COMPARISON_TYPES`.

    Returns:
        Columns premise, hypothesis, label and type.

    Raises:
        UnknownNameError: no such split, type or length.
        InputError: a size that does not divide, or more rows than there are.

    Example:
        >>> table = comparisons("train", 8, seed=0)
        >>> table["premise"][2]
        'the painter is more elegant than the farmer .'
        >>> table["hypothesis"][2]
        'the farmer is less elegant than the painter .'
        >>> table["label"][2], table["type"][2]
        ('entailment', 'more-less')
    """
    if split not in COMPARISON_SPLITS:
        raise UnknownNameError("split", split, COMPARISON_SPLITS)
    for name in types:
        if name not in COMPARISON_TYPES:
            raise UnknownNameError("comparison type", name, COMPARISON_TYPES)
    if len(set(types)) < max(len(types), 1):
        raise InputError(f"types {list(types)} must be one or more, each once")
    if phrases not in ("short", "long"):
        raise UnknownNameError("noun phrase length", phrases, ("short", "long"))
    unit = 2 * len(types)
    if size < unit or size % unit:
        near = max(round(size / unit), 1) * unit
        raise InputError(f"size {size} is not a multiple of {unit} (2 x types); use {near}")
    words = _words_of(split, phrases)
    rows: list[tuple[str, str, str, str]] = []
    for name in types:
        part = size // len(types)
        rows += (
            _unrelated(words, part, seed, split)
            if name == "unrelated"
            else _contrast(name, words, part, seed, split)
        )
    columns = zip(*rows, strict=True)
    names = ("premise", "hypothesis", "label", "type")
    return Table(
        {name: list(values) for name, values in zip(names, columns, strict=True)},
        f"comparisons/{split}",
    )


def _words_of(split: str, phrases: Phrases) -> _Words:
    if split == "eval-length":
        phrases = "long" if phrases == "short" else "short"
    nouns: tuple[str, ...] = SHORT_NOUNS if phrases == "short" else LONG_NOUNS
    adjectives: tuple[str, ...] = ADJECTIVES
    held = HELD_OUT_SHORT if phrases == "short" else HELD_OUT_LONG
    if split == "eval-words":
        nouns, adjectives = nouns[-held:], adjectives[-HELD_OUT_ADJECTIVES:]
    else:
        nouns, adjectives = nouns[:-held], adjectives[:-HELD_OUT_ADJECTIVES]
    contexts = itertools.product(itertools.permutations(nouns, 2), adjectives)
    kept = ((x, y, adjective) for (x, y), adjective in contexts)
    if split in ("train", "eval"):
        kept = (c for c in kept if _in_eval(*c) == (split == "eval"))
    return _Words(nouns, adjectives, tuple(kept))


def _in_eval(x: str, y: str, adjective: str) -> bool:
    text = "|".join((*sorted((x, y)), adjective))
    return hashlib.sha256(text.encode()).digest()[0] % EVAL_SHARE == 0


def _sentence(x: str, degree: Degree, adjective: str, y: str) -> str:
    negated, comparative = degree
    return f"{x} is {'not ' if negated else ''}{comparative} {adjective} than {y} ."


def _partner(name: str, degree: Degree) -> Degree:
    """Return the degree of the hypothesis for a premise of `degree`."""
    negated, comparative = degree
    if name == "same":
        return degree
    if name == "not":
        return (not negated, comparative)
    return (negated, "less" if comparative == "more" else "more")


def _contrast(
    name: str, words: _Words, size: int, seed: int, split: str
) -> list[tuple[str, str, str, str]]:
    degrees = _DEGREES[:2] if name == "more-less" else _DEGREES
    items = list(itertools.product(words.contexts, degrees))
    _check_size(name, split, size, 2 * len(items))
    rows = []
    for index in permutation(len(items), seed, "comparisons", split, name)[: size // 2]:
        (x, y, adjective), degree = items[index]
        premise, partner = _sentence(x, degree, adjective, y), _partner(name, degree)
        kept = _sentence(x, partner, adjective, y)
        turned = _sentence(y, partner, adjective, x)
        # The same degree keeps its meaning when kept; an opposed one does when turned round.
        entailed, contradicted = (kept, turned) if name == "same" else (turned, kept)
        rows.append((premise, entailed, "entailment", name))
        rows.append((premise, contradicted, "contradiction", name))
    return rows


def _unrelated(words: _Words, size: int, seed: int, split: str) -> list[tuple[str, str, str, str]]:
    items = list(itertools.product(words.contexts, _DEGREES))
    _check_size("unrelated", split, size, len(items))
    order = permutation(len(items), seed, "comparisons", split, "unrelated")[:size]
    # Keyed by the item, not by its place, so that a larger size begins with a smaller one's rows.
    draws = integers(2**31, 4 * len(items), seed, "comparisons", split, "others").reshape(-1, 4)
    rows = []
    for index in order:
        (x, y, adjective), degree = items[index]
        which, other, way, turn = (int(value) for value in draws[index])
        premise = _sentence(x, degree, adjective, y)
        nouns = [n for n in words.nouns if n not in (x, y)]
        # With two nouns only (held-out long phrases) none is left: then change the adjective.
        if which % 2 and nouns:
            noun = nouns[other % len(nouns)]
            x, y = (noun, y) if which % 4 > 1 else (x, noun)
        else:
            adjectives = [a for a in words.adjectives if a != adjective]
            adjective = adjectives[other % len(adjectives)]
        if turn % 2:
            x, y = y, x
        hypothesis = _sentence(x, _DEGREES[way % 4], adjective, y)
        rows.append((premise, hypothesis, "neutral", "unrelated"))
    return rows


def comparison_capacity(
    split: str, phrases: Phrases = "short", types: Sequence[str] = COMPARISON_TYPES
) -> int:
    """Return the most rows that `comparisons` can give.

    Example:
        >>> comparison_capacity("eval-words")
        9600
    """
    contexts = len(_words_of(split, phrases).contexts)
    per_context = {"same": 8, "more-less": 4, "not": 8, "unrelated": 4}
    return len(types) * contexts * min(per_context[name] for name in types)


def _check_size(name: str, split: str, size: int, most: int) -> None:
    if size > most:
        raise InputError(
            f"comparisons/{split} has {most} rows of type {name!r}, but {size} are wanted; use a "
            "smaller size"
        )
