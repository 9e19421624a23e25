"""Streams: a pure function of seed and index, the same batch whatever the number of processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tasks.fakes import module_base, text_base
from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork._errors import InputError, UnknownNameError, UnsupportedError
from graftwork.tasks import (
    ArrayInput,
    GeneratorStream,
    Signature,
    Stream,
    Table,
    TableStream,
    shard,
)
from graftwork.tasks._pinned import integers, permutation, words

ARRAY = Signature(
    kind="classification", call="array", fields=("x",), labels=("0", "1"), array=ArrayInput((1,))
)


def stream(rows: int = 7, **options: object) -> TableStream:
    x = np.arange(float(rows))[:, None]
    table = Table({"x": x, "label": [i % 2 for i in range(rows)]})
    defaults: dict[str, object] = {"batch_size": 3, "seed": 1}
    base = module_base(nn.Identity())
    return TableStream(table=table, signature=ARRAY, base=base, **(defaults | options))  # type: ignore[arg-type]


def rows_of(batch: Batch) -> list[int]:
    assert batch.inputs["x"].flatten().tolist() == batch.rows.tolist()
    assert batch.targets is not None
    assert batch.targets.tolist() == [row % 2 for row in batch.rows.tolist()]
    return list(batch.rows.tolist())


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 40), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_draw_depends_on_seed_and_index_only(size: int, rows: int, index: int, seed: int) -> None:
    walked = stream(rows, batch_size=size, seed=seed)
    batches = [rows_of(walked.draw()) for _ in range(index + 1)]
    jumped = stream(rows, batch_size=size, seed=seed)
    jumped.seek(index)
    assert rows_of(jumped.draw()) == batches[-1]
    assert all(len(batch) == size for batch in batches)


@given(st.integers(1, 12), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_each_epoch_has_every_row_once(size: int, rows: int) -> None:
    source = stream(rows, batch_size=size)
    drawn = [row for _ in range(3 * rows) for row in rows_of(source.draw())]
    for epoch in range(3 * size):
        assert sorted(drawn[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_neighbours_with_equal_values_stay_together() -> None:
    texts = ["a", "a", "b", "c", "c", "c", "d", "a"]
    blocks = [[0, 1], [2], [3, 4, 5], [6], [7]]
    table = Table({"x": np.arange(8.0)[:, None], "text": texts, "label": [0, 1] * 4})
    base = module_base(nn.Identity())
    together = TableStream(
        table=table, signature=ARRAY, base=base, batch_size=8, together="text", seed=1
    )
    orders = set()
    for _ in range(6):
        rows = together.draw().rows.tolist()
        assert sorted(rows) == list(range(8))
        for block in blocks:
            first = rows.index(block[0])
            assert rows[first : first + len(block)] == block
        orders.add(tuple(rows))
    assert len(orders) > 1


@given(st.integers(1, 5), st.integers(5, 11), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_processes_share_one_global_batch(world: int, size: int, rows: int) -> None:
    whole = stream(rows, batch_size=size)
    parts = [stream(rows, batch_size=size, rank=rank, world=world) for rank in range(world)]
    for _ in range(4):
        batch = rows_of(whole.draw())
        assert [rows_of(part.draw()) for part in parts] == [batch[r::world] for r in range(world)]


def test_shard_parts_all_streams_of_a_task() -> None:
    whole = stream(9, batch_size=4)
    want = [rows_of(whole.draw()) for _ in range(3)]

    def make(index: int) -> Batch:
        return Batch({"x": torch.arange(4.0)}, None, torch.arange(4) + 4 * index)

    for rank in range(2):
        streams = {
            "train": stream(9, batch_size=4),
            "made": GeneratorStream(make=make, name="made", digest="v1"),
        }
        shard(streams, rank, 2)
        assert [rows_of(streams["train"].draw()) for _ in range(3)] == [b[rank::2] for b in want]
        assert streams["made"].draw().rows.tolist() == [rank, rank + 2]
        with pytest.raises(InputError, match="rank 2 is not one of 2"):
            shard(streams, 2, 2)
    with pytest.raises(InputError, match="gives some of 5 processes no rows"):
        shard({"train": whole}, 0, 5)


@pytest.mark.usefixtures("untyped")
def test_a_stream_that_cannot_be_parted_is_named() -> None:
    class Whole:
        name, digest, groups = "w", "v1", None

    shard({"w": Whole()}, 0, 1)  # type: ignore[dict-item]
    with pytest.raises(UnsupportedError, match="stream 'w' cannot be parted among 2"):
        shard({"w": Whole()}, 0, 2)  # type: ignore[dict-item]


def test_epochs_names_and_seeds_have_orders_of_their_own() -> None:
    def order(epoch: int = 0, **options: object) -> list[int]:
        source = stream(40, batch_size=40, **options)
        source.seek(epoch)
        return rows_of(source.draw())

    orders = [order(), order(1), order(seed=2), order(name="eval"), order(shuffle=False)]
    assert len({tuple(o) for o in orders}) == 5
    assert orders[-1] == list(range(40))


def test_the_generator_is_pinned() -> None:
    assert [int(w) for w in words(2, 0, "train", 0)] == [11760158631096276102, 16069538811458401774]
    assert permutation(8, 1, "train", 2).tolist() == [5, 4, 3, 6, 0, 2, 7, 1]
    assert integers(100, 6, 5, "x").tolist() == [10, 58, 43, 61, 65, 48]
    counts = Counter(integers(7, 70_000, 0, "fair").tolist())
    assert sorted(counts) == list(range(7))
    assert max(abs(n - 10_000) for n in counts.values()) < 400


def test_state_resumes_exactly_and_refuses_changed_data() -> None:
    source = stream()
    for _ in range(5):
        source.draw()
    state = source.state()
    assert all(isinstance(value, Tensor) for value in state.values())
    other = stream()
    other.load_state(state)
    assert other.index == 5
    assert rows_of(other.draw()) == rows_of(source.draw())
    with pytest.raises(InputError, match="changed since the checkpoint"):
        stream(8).load_state(state)
    with pytest.raises(InputError, match=r"has the keys \['index'\]"):
        source.load_state({"index": state["index"]})


def test_once_goes_through_all_rows_and_leaves_the_stream_alone() -> None:
    source = stream(rank=1, world=2)
    first = [rows_of(batch) for batch in source.once(3)]
    assert first == [[0, 1, 2], [3, 4, 5], [6]]
    assert source.index == 0


def test_once_by_length_pads_less_and_names_its_rows() -> None:
    texts = ["a b c d", "a", "a b c", "a b"]
    signature = Signature(kind="classification", call="single", fields=("text",), labels=("0", "1"))
    table = Table({"text": texts})
    source = TableStream(table=table, signature=signature, base=text_base(), batch_size=2)
    batches = list(source.once(by_length=True))
    assert [b.rows.tolist() for b in batches] == [[1, 3], [2, 0]]
    assert [b.inputs["input_ids"].shape[1] for b in batches] == [4, 6]
    assert batches[0].targets is None


def test_a_batch_equals_its_rows_encoded_alone() -> None:
    signature = Signature(
        kind="classification", call="two_encodings", fields=("one", "two"), labels=("0", "1")
    )
    table = Table(
        {"one": ["a b c", "a", "film"], "two": ["good", "bad film", ""], "label": [0, 1, 0]}
    )
    source = TableStream(
        table=table, signature=signature, base=text_base(), batch_size=3, shuffle=False
    )
    want = signature.encode(
        text_base(), [{"one": r["one"], "two": r["two"]} for r in table.records()]
    )
    got = source.draw().inputs
    assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world": 2}, "rank 2 is not one of 2"),
        ({"batch_size": 1, "world": 2}, "gives some of 2 processes no rows"),
        ({"rows": 0}, "no rows"),
        ({"group": "kind"}, "unknown column of the table: 'kind'"),
    ],
)
def test_bad_streams_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        stream(**options)  # type: ignore[arg-type]


def test_unknown_labels_name_file_row_and_value() -> None:
    table = Table({"x": [[0.0], [1.0]], "label": ["1", "one"]}, "dev.csv")
    with pytest.raises(
        UnknownNameError, match=r"label \(dev.csv, row 2, column 'label'\) 'one'.*known: '0', '1'"
    ):
        TableStream(table=table, signature=ARRAY, base=module_base(nn.Identity()))


class Buffer:
    def __init__(self) -> None:
        self.total = torch.zeros(())

    def state(self) -> dict[str, Tensor]:
        return {"total": self.total.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.total = state["total"].clone()


def generated(memory: Buffer | None = None, **options: int) -> GeneratorStream:
    def make(index: int) -> Batch:
        if memory is not None:
            memory.total += index + 1
        value = torch.arange(4.0) + 10 * index + (0 if memory is None else memory.total)
        return Batch({"x": value}, None, torch.arange(4))

    return GeneratorStream(make=make, name="play", digest="v1", memory=memory, **options)  # type: ignore[arg-type]


def test_generator_streams_resume_with_their_memory() -> None:
    source = generated(Buffer())
    for _ in range(3):
        source.draw()
    state = source.state()
    assert set(state) == {"index", "memory.total"}
    other = generated(Buffer())
    other.load_state(state)
    assert torch.equal(other.draw().inputs["x"], source.draw().inputs["x"])
    with pytest.raises(InputError, match="has the keys"):
        generated().load_state(state)


def test_generator_streams_shard_and_end_where_told() -> None:
    part = generated(rank=1, world=2, count=2)
    assert part.draw().inputs["x"].tolist() == [1.0, 3.0]
    assert [b.inputs["x"][0].item() for b in part.once()] == [0.0, 10.0]
    with pytest.raises(InputError, match="has no end"):
        list(generated().once())
    assert isinstance(part, Stream)
    assert isinstance(stream(), Stream)
