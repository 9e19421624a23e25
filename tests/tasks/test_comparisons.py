"""Comparisons: the logic by an oracle that knows nothing of the rules, and what words give away."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork._errors import InputError, UnknownNameError
from graftwork.tasks import (
    COMPARISON_LABELS,
    COMPARISON_SPLITS,
    COMPARISON_TYPES,
    Table,
    comparison_capacity,
    comparisons,
)
from graftwork.tasks._words import ADJECTIVES, LONG_NOUNS, SHORT_NOUNS

AUTHORS = (
    Path(os.environ.get("GRAFTWORK_DATA", "../shared/data"))
    / "compositional-nli"
    / "testData"
    / "new"
)
SENTENCE = re.compile(r"(?P<x>.+?) is (?P<no>not )?(?P<c>more|less) (?P<a>.+?) than (?P<y>.+?) \.")
Claim = tuple[str, str, str, bool]
"""(x, y, adjective, whether x has more of it than y)."""


def claim(sentence: str) -> Claim:
    found = SENTENCE.fullmatch(sentence.strip())
    assert found, sentence
    return found["x"], found["y"], found["a"], (found["c"] == "more") != bool(found["no"])


@cache
def oracle(premise: str, hypothesis: str) -> str:
    """Go through every way to rank the nouns strictly on each adjective."""
    a, b = claim(premise), claim(hypothesis)
    nouns = sorted({a[0], a[1], b[0], b[1]})
    adjectives = sorted({a[2], b[2]})
    seen = set()
    orders = list(itertools.permutations(range(len(nouns))))
    for ranks in itertools.product(orders, repeat=len(adjectives)):
        rank = {
            (noun, adjective): order[i]
            for adjective, order in zip(adjectives, ranks, strict=True)
            for i, noun in enumerate(nouns)
        }
        if (rank[a[0], a[2]] > rank[a[1], a[2]]) == a[3]:
            seen.add((rank[b[0], b[2]] > rank[b[1], b[2]]) == b[3])
    return {(True,): "entailment", (False,): "contradiction"}.get(tuple(seen), "neutral")


def test_the_oracle_itself() -> None:
    more = "the boy is more happy than the girl ."
    assert oracle(more, "the girl is less happy than the boy .") == "entailment"
    assert oracle(more, "the girl is not more happy than the boy .") == "entailment"
    assert oracle(more, "the girl is not less happy than the boy .") == "contradiction"
    assert oracle(more, "the boy is more tall than the girl .") == "neutral"
    assert oracle(more, "the boy is more happy than the man .") == "neutral"


sizes = st.integers(1, 40).map(lambda n: 8 * n)


@given(
    st.sampled_from(COMPARISON_SPLITS),
    sizes,
    st.integers(0, 20),
    st.sampled_from(["short", "long"]),
)
@settings(max_examples=40, deadline=None)
def test_every_label_follows_from_the_logic(split: str, size: int, seed: int, phrases: str) -> None:
    table = comparisons(split, size, seed=seed, phrases=phrases)  # type: ignore[arg-type]
    for row in table.records():
        assert oracle(row["premise"], row["hypothesis"]) == row["label"], row


@given(st.sampled_from(COMPARISON_SPLITS), sizes, st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_types_and_labels_are_exactly_balanced(split: str, size: int, seed: int) -> None:
    table = comparisons(split, size, seed=seed)
    assert len(table) == size
    counts = Counter(zip(table["type"], table["label"], strict=True))
    want = {
        (t, k): size // 8 for t in COMPARISON_TYPES[:3] for k in ("entailment", "contradiction")
    }
    assert counts == {**want, ("unrelated", "neutral"): size // 4}


def bag(text: str) -> Counter[str]:
    return Counter(text.split())


@given(st.sampled_from(COMPARISON_SPLITS), sizes.map(lambda n: 6 * n), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_a_bag_of_words_cannot_part_a_contrast_pair(split: str, size: int, seed: int) -> None:
    rows = list(comparisons(split, size, seed=seed, types=COMPARISON_TYPES[:3]).records())
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        assert one["premise"] == two["premise"]
        assert {one["label"], two["label"]} == {"entailment", "contradiction"}
        assert bag(one["hypothesis"]) == bag(two["hypothesis"])
        changed = bag(one["premise"]) - bag(one["hypothesis"])
        added = bag(one["hypothesis"]) - bag(one["premise"])
        if one["type"] == "same":
            assert not changed
            assert not added
        elif one["type"] == "more-less":
            assert {*changed, *added} == {"more", "less"}
        else:
            assert [*changed, *added] == ["not"]


def test_every_degree_and_order_of_the_spec_appears() -> None:
    seen = set()
    for row in comparisons("train", 4000).records():
        a, b = (
            re.sub(r" is (not )?(more|less) .*", r"|\1\2", row[k])
            for k in ("premise", "hypothesis")
        )
        nouns = (a.split("|")[0], b.split("|")[0])
        seen.add((row["type"], a.split("|")[1], b.split("|")[1], nouns[0] == nouns[1]))
    kinds = Counter(kind for kind, *_ in seen)
    assert kinds["same"] == 8
    assert kinds["more-less"] == 4
    assert kinds["not"] == 8
    assert kinds["unrelated"] == 32


def pairs(table: Table) -> set[tuple[str, str]]:
    return set(zip(table["premise"], table["hypothesis"], strict=True))


@pytest.mark.parametrize("phrases", ["short", "long"])
def test_no_pair_is_in_two_splits_whatever_the_seed(phrases: str) -> None:
    every = {}
    for split in COMPARISON_SPLITS:
        size = min(comparison_capacity(split, phrases), 8000)  # type: ignore[arg-type]
        every[split] = set()
        for seed in (0, 1):
            table = comparisons(split, size, seed=seed, phrases=phrases)  # type: ignore[arg-type]
            every[split] |= pairs(table)
            assert len(pairs(table)) == size
    for one, two in itertools.combinations(COMPARISON_SPLITS, 2):
        assert not every[one] & every[two], (one, two)


def words(table: Table) -> tuple[set[str], set[str]]:
    nouns, adjectives = set(), set()
    for side in ("premise", "hypothesis"):
        for sentence in table[side]:
            x, y, adjective, _ = claim(sentence)
            nouns |= {x, y}
            adjectives.add(adjective)
    return nouns, adjectives


def test_words_are_shared_held_out_or_of_the_other_length_as_the_split_says() -> None:
    found = {s: words(comparisons(s, 4000)) for s in COMPARISON_SPLITS}
    nouns, adjectives = found["train"]
    assert (len(nouns), len(adjectives)) == (16, 80)
    assert found["eval"] == found["train"]
    held_nouns, held_adjectives = found["eval-words"]
    assert (len(held_nouns), len(held_adjectives)) == (6, 20)
    assert not nouns & held_nouns
    assert not adjectives & held_adjectives
    assert nouns | held_nouns == set(SHORT_NOUNS)
    assert adjectives | held_adjectives == set(ADJECTIVES)
    assert found["eval-length"][0] < set(LONG_NOUNS)
    assert found["eval-length"][1] == adjectives


def test_word_lists() -> None:
    assert (len(SHORT_NOUNS), len(LONG_NOUNS), len(ADJECTIVES)) == (22, 8, 100)
    for names in (SHORT_NOUNS, LONG_NOUNS, ADJECTIVES):
        assert len(set(names)) == len(names)
    assert "the billionaire" in SHORT_NOUNS
    assert not any(" " in adjective for adjective in ADJECTIVES)


def test_seeds_and_sizes() -> None:
    assert comparisons("train", 80).digest == comparisons("train", 80).digest
    assert (
        comparisons("train", 80).digest
        == "95eeeb720f7d5164880f020ec626386823f07ad616dfc57615c9ba11a0244309"
    )
    assert comparisons("train", 80).digest != comparisons("train", 80, seed=1).digest
    small, large = comparisons("eval", 80), comparisons("eval", 160)
    for kind in COMPARISON_TYPES:
        of = [[tuple(r.values()) for r in t.records() if r["type"] == kind] for t in (small, large)]
        assert of[1][: len(of[0])] == of[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": "test"}, UnknownNameError, "unknown split 'test'"),
        ({"size": 81}, InputError, r"size 81 is not a multiple of 8 \(2 x types\); use 80"),
        ({"size": 0}, InputError, "use 8"),
        (
            {"types": ["sam"]},
            UnknownNameError,
            "unknown comparison type 'sam'; did you mean 'same'",
        ),
        ({"types": []}, InputError, "one or more"),
        ({"types": ["same", "same"]}, InputError, "each once"),
        ({"split": "eval-words", "size": 9608}, InputError, "has 2400 rows of type 'more-less'"),
    ],
)
def test_bad_arguments_are_named(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments: dict[str, object] = {"split": "train", "size": 80, **options}
    with pytest.raises(error, match=message):
        comparisons(**arguments)  # type: ignore[arg-type]


@pytest.mark.usefixtures("untyped")
def test_an_unknown_length_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown noun phrase length 'medium'"):
        comparisons("train", 8, phrases="medium")  # type: ignore[arg-type]


FILES = [
    (part, kind, length)
    for part in ("test", "valid", "train")
    for kind in ("same", "ml", "not")
    for length in ("short", "long")
]


@pytest.mark.skipif(
    not AUTHORS.is_dir(), reason="set GRAFTWORK_DATA to a folder with compositional-nli/"
)
@pytest.mark.parametrize(("part", "kind", "length"), FILES)
def test_the_oracle_agrees_with_every_label_of_the_authors(
    part: str, kind: str, length: str
) -> None:
    def lines(name: str) -> list[str]:
        text = (AUTHORS / part / f"{name}.comp_{kind}_{length}").read_text(encoding="utf-8")
        return [line for line in text.split("\n") if line.strip()]

    ones, twos, labels = lines("s1"), lines("s2"), lines("labels")
    assert len(ones) == len(twos) == len(labels) == (6667 if part == "train" else 334)
    wrong = [
        (a, b, label)
        for a, b, label in zip(ones, twos, labels, strict=True)
        if oracle(a, b) != COMPARISON_LABELS[int(label)]
    ]
    assert not wrong, (len(wrong), wrong[:3])
