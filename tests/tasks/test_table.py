"""Tables: rows, digests, splits, and errors that name rows of the source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork._errors import InputError, UnknownNameError
from graftwork.tasks import Table
from graftwork.tasks._targets import label_column, labels_of, numbers_of


def small() -> Table:
    return Table({"text": ["a", "b", "c"], "x": np.arange(6).reshape(3, 2)}, "small.csv")


def test_take_keeps_values_and_where_rows_came_from() -> None:
    taken = small().take([2, 0]).take([0])
    assert taken["text"] == ["c"]
    assert np.asarray(taken["x"]).tolist() == [[4, 5]]
    assert taken.where(0) == "small.csv, row 3"


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_parts_are_disjoint_whole_and_seeded(rows: int, share: float, seed: int) -> None:
    table = Table({"i": list(range(rows))})
    rest, part = table.split(share, seed)
    assert sorted(list(rest["i"]) + list(part["i"])) == list(range(rows))
    assert len(rest) >= 1
    assert len(part) == min(max(round(rows * share), 1), rows - 1)
    again = table.split(share, seed)
    assert list(again[1]["i"]) == list(part["i"])


def test_sample_draws_without_replacement_in_order() -> None:
    table = Table({"i": list(range(50))})
    drawn = list(table.sample(10, seed=3)["i"])
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 10
    assert drawn != list(table.sample(10, seed=4)["i"])
    assert table.sample(None, 0) is table
    assert table.sample(50, 0) is table


def test_digest_sees_every_value_and_name_but_not_the_order_of_columns() -> None:
    first = Table({"a": ["x", "yz"], "b": [1, 2]})
    assert first.digest == Table({"b": [1, 2], "a": ["x", "yz"]}, "other").digest
    others = [
        Table({"a": ["xy", "z"], "b": [1, 2]}),
        Table({"a": ["x", "yz"], "c": [1, 2]}),
        Table({"a": ["x", "yz"], "b": [2, 1]}),
        Table({"a": ["x", "yz"], "b": ["1", "2"]}),
        Table({"a": [b"x", "yz"], "b": [1, 2]}),
        first.take([1, 0]),
    ]
    digests = {first.digest, *(t.digest for t in others)}
    assert len(digests) == 1 + len(others)


def test_digest_is_pinned() -> None:
    table = Table({"a": ["x", "é"], "b": np.array([[1.5], [2.0]]), "c": [None, {"k": [1]}]})
    assert table.digest == "4c9c08a263246b2a5dc1cb88a45ec2ec61ae339db69ccbba490b91c4ddbb648f"


def test_tensors_tuples_and_text_arrays_are_columns() -> None:
    table = Table({"t": torch.arange(2), "u": ("a", "b"), "s": np.array(["p", "q"])})
    assert np.asarray(table["t"]).tolist() == [0, 1]
    assert (table["u"], table["s"]) == (["a", "b"], ["p", "q"])
    assert list(table.records())[1] == {"t": 1, "u": "b", "s": "q"}


def test_bad_tables_are_named() -> None:
    with pytest.raises(InputError, match=r"different lengths: \{'a': 1, 'b': 2\}"):
        Table({"a": [1], "b": [1, 2]})
    with pytest.raises(InputError, match="not the text 'abc'"):
        Table({"a": "abc"})
    with pytest.raises(UnknownNameError, match=r"column of small.csv: 'txt'; did you mean 'text'"):
        small()["txt"]
    with pytest.raises(InputError, match="1 rows cannot be split"):
        Table({"a": [1]}).split(0.5, 0)
    with pytest.raises(InputError, match="not between 0 and 1"):
        small().split(1.0, 0)
    with pytest.raises(InputError, match=r"row 2: columns \['b'\] differ"):
        Table.from_records([{"a": 1}, {"b": 1}])


@pytest.mark.parametrize("missing", [None, float("nan"), "", "  ", "NaN", np.float64("nan")])
def test_missing_labels_are_counted_and_their_rows_named(missing: object) -> None:
    table = Table({"y": ["a", missing, "b", missing]}, "dev.tsv").take([3, 0, 1])
    with pytest.raises(InputError) as error:
        label_column(table, "y")
    assert "2 of 3 values in column 'y' are missing or NaN" in str(error.value)
    assert "(dev.tsv, row 4; dev.tsv, row 2)" in str(error.value)
    with pytest.raises(InputError, match="2 of 3 values"):
        numbers_of(Table({"y": [1, missing, missing]}), "y")


def test_many_missing_labels_are_not_all_listed() -> None:
    with pytest.raises(InputError) as error:
        label_column(Table({"y": [None] * 9}), "y")
    assert str(error.value).count("row ") == 5


def test_labels_are_sorted_as_numbers_where_they_are() -> None:
    assert labels_of(Table({"y": ["10", "9", "-1"]}), "y") == ("-1", "9", "10")
    assert labels_of(Table({"y": ["b", "10", "a"]}), "y") == ("10", "a", "b")
    assert labels_of(Table({"y": np.array([1.0, 0.0])}), "y") == ("0", "1")
    assert labels_of(Table({"y": [True, False]}), "y") == ("false", "true")


def test_one_class_only_and_no_rows_are_errors() -> None:
    with pytest.raises(InputError, match="all 2 rows have the one label 'a' in column 'y'"):
        labels_of(Table({"y": ["a", "a"]}), "y")
    with pytest.raises(InputError, match="no rows"):
        labels_of(Table({"y": []}), "y")


@pytest.mark.parametrize("value", ["high", "1,5", "inf"])
def test_values_that_are_no_numbers_are_named(value: str) -> None:
    with pytest.raises(InputError, match=rf"s.csv, row 2: column 'y' has '{value}'"):
        numbers_of(Table({"y": ["0.5", value]}, "s.csv"), "y")
