"""Layouts from two forwards, and what makes two calls alike."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graftwork.serving._kinds import key_of
from graftwork.serving._layout import LayoutError, Rows, Shared, Unclear, layouts_of


def both(make: Any) -> Any:
    """Return the layout of what `make` gives for rows `[a, b]` and `[a, b, b]`."""
    a, b = (torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    two, three = (make(torch.stack(rows)) for rows in ((a, b), (a, b, b)))
    return layouts_of({(): two}, {(): three})[()]


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (lambda x: x, Rows(0)),
        (lambda x: x.transpose(0, 1), Rows(1)),
        (lambda x: x.permute(2, 1, 0), Rows(2)),
        (lambda x: x.flatten(0, 1), Rows(0)),
        (lambda x: x.transpose(0, 1).flatten(0, 1), Rows(0, minor=True)),
        (lambda x: x.repeat_interleave(3, 0), Rows(0)),
        (lambda x: torch.zeros(1, 5), Shared(single=True)),
        (lambda x: torch.zeros(5, 5), Shared(single=False)),
    ],
)
def test_where_rows_stand(make: Any, layout: Any) -> None:
    assert both(make) == layout


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.flip(0),
        lambda x: x.cumsum(0),
        lambda x: x - x.mean(0),
        lambda x: x @ x.transpose(1, 2) if len(x) == 2 else x,
        lambda x: torch.zeros(len(x), len(x)),
        lambda x: torch.zeros(4 * len(x), 2),
    ],
)
def test_what_has_no_rows_of_its_own_is_unclear(make: Any) -> None:
    assert isinstance(both(make), Unclear)


@given(
    rows=st.integers(1, 5),
    entries=st.integers(1, 4),
    dim=st.integers(0, 2),
    minor=st.booleans(),
)
def test_rows_first_and_back_again(rows: int, entries: int, dim: int, minor: bool) -> None:
    layout = Rows(dim, minor)
    shape = [2, 3, 4]
    shape[dim] = rows * entries
    tensor = torch.randn(shape)
    first = layout.first(tensor, rows)
    assert torch.equal(layout.back(first, rows), tensor)
    moved = tensor.movedim(dim, 0)
    for row in range(rows):
        mine: Tensor = first[row * entries : (row + 1) * entries]
        places = [j * rows + row if minor else row * entries + j for j in range(entries)]
        assert torch.equal(mine, moved[places])


def test_a_tensor_without_such_rows_is_an_error() -> None:
    with pytest.raises(LayoutError, match=r"shape \(5, 2\) has no 3 rows in dimension 0"):
        Rows(0).first(torch.zeros(5, 2), 3)
    with pytest.raises(LayoutError, match="had one entry for all rows"):
        Shared(single=True).check(torch.zeros(3, 2))


class Service:
    def __init__(self, flag: bool) -> None:
        self.flag = flag

    def call(self, x: int) -> int:
        return x if self.flag else -x


def made(flag: Any, seen: Any = None) -> Any:
    def call(x: Any) -> Any:
        return (x, flag, seen)

    return call


def test_calls_are_alike_by_code_and_plain_values() -> None:
    assert key_of(made(True)) == key_of(made(True))
    assert key_of(made(True)) != key_of(made(False))
    assert key_of(made(1)) != key_of(made(True))
    assert key_of(made(made(1))) != key_of(made(made(2)))
    # a list that a call fills is no setting of it
    assert key_of(made(1, [])) == key_of(made(1, [5]))
    assert key_of(Service(True).call) == key_of(Service(True).call)
    assert key_of(Service(True).call) != key_of(Service(False).call)
    assert key_of(functools.partial(made, flag=1)) != key_of(functools.partial(made, flag=2))
    assert key_of(lambda x: x) != key_of(lambda x: -x)
    hash(key_of(functools.partial(made, flag=(1, {"a": 2}))))


def test_a_function_that_closes_over_itself_has_a_key() -> None:
    def call(depth: int) -> int:
        return 0 if not depth else call(depth - 1)

    assert key_of(call) == key_of(call)


def test_objects_that_are_called() -> None:
    class Once:
        def __init__(self, flag: bool) -> None:
            self.flag = flag

        def __call__(self, x: int) -> int:
            return x

    assert key_of(Once(True)) == key_of(Once(True))
    assert key_of(Once(True)) != key_of(Once(False))
