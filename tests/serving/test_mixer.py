"""Mixed batches against the reference row executor, on trained deltas of the whole battery."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graftwork._errors import (
    ConfigError,
    DeltaError,
    FingerprintError,
    UnknownNameError,
    UnsupportedError,
)
from graftwork.bases import load
from graftwork.deltas import apply
from graftwork.serving import Mixer, MixerConfig, Report
from tests.battery.models import CASES
from tests.deltas.test_rows import POOL, ROWS, call
from tests.serving.support import (
    TOLERANCE,
    Row,
    deltas_of,
    in_turn,
    plain_call,
    rows_of,
    trained,
    wide,
)

EVERY: list[Row] = [
    (),
    ((0, 1.0),),
    ((1, 1.0), (3, 0.5)),
    ((2, -0.5),),
    ((4, 1.0), (5, 1.0)),
    (),
    ((3, 0.0),),
    ((0, 0.75), (1, 0.25)),
]


def check(name: str, dtype: torch.dtype, rows: list[Row], order: list[int]) -> Report:
    held, source = trained(name, dtype)
    batch = source.batch.select(torch.tensor(order[: len(rows)]))
    return held.check(rows, batch, wide(call(source.case)), TOLERANCE[dtype])


@settings(max_examples=25)
@given(rows=st.lists(ROWS, min_size=1, max_size=8), order=st.permutations(range(8)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_law06_random_batches_equal_the_definition(
    dtype: torch.dtype, rows: list[Row], order: list[int]
) -> None:
    check("lstm", dtype, rows, order)


@settings(max_examples=3)
@given(rows=st.lists(ROWS, min_size=1, max_size=8), order=st.lists(st.integers(0, 7), min_size=8))
@pytest.mark.parametrize("name", CASES)
def test_law06_random_batches_on_the_whole_battery(
    name: str, rows: list[Row], order: list[int]
) -> None:
    # the same row of the batch may stand there twice
    check(name, torch.float32, rows, order)


@pytest.mark.slow
@settings(max_examples=40)
@given(rows=st.lists(ROWS, min_size=1, max_size=8), order=st.lists(st.integers(0, 7), min_size=8))
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_law06_many_random_batches_on_the_whole_battery(
    name: str, dtype: torch.dtype, rows: list[Row], order: list[int]
) -> None:
    if dtype in (torch.bfloat16, torch.float16):
        # a sum of three deltas can bring an attention near a tie, where one rounding
        # more moves a row by a tenth: seen in one row of BERT's, of which 7 others agreed
        rows = [row[:1] for row in rows]
    check(name, dtype, rows, order)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_law06_every_kind_in_one_batch_and_in_every_type(name: str, dtype: torch.dtype) -> None:
    report = check(name, dtype, EVERY, list(range(8)))
    assert not report.whole
    trained(name, dtype)[0].base.verify()


def test_law06_two_hundred_tasks_in_one_batch() -> None:
    held = deltas_of(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), count=200)
    x = torch.randn(260, 8, generator=torch.Generator().manual_seed(0))
    rows = [((i % 200, 1.0),) if i % 13 else () for i in range(260)]
    report = held.check(rows, rows_of(x), plain_call)
    assert report.together == {"linear": 2}
    assert not report.apart


def test_law06_the_same_delta_twice_in_a_row_counts_twice() -> None:
    held, source = trained("lstm")
    one = source.batch.select(torch.arange(1))
    (twice,), _ = held.run([[(5, 0.5), (5, 0.5)]], one, call(source.case))
    (once,), _ = held.run([[(5, 1.0)]], one, call(source.case))
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-5)


def test_law06_base_only_rows_are_the_base_to_the_bit() -> None:
    held, source = trained("bert")
    outputs, _ = held.run([()] * 8, source.batch, call(source.case))
    with torch.no_grad():
        plain = source.case.call(held.base.model, source.batch.inputs)
    assert torch.equal(torch.stack(outputs), plain)


def test_law09_eight_threads_over_one_base_give_what_one_gives() -> None:
    held, source = trained("bert")
    run = call(source.case)
    batches = []
    for thread in range(8):
        turned = [*EVERY[thread:], *EVERY[:thread]][: 8 - thread % 3]
        batches.append((turned, source.batch.select(torch.arange(len(turned)))))
    alone = [held.run(*batch, run)[0] for batch in batches]
    barrier, failures = threading.Barrier(8), []

    def work(thread: int) -> None:
        rows, batch = batches[thread]
        barrier.wait()
        for _ in range(4):
            outputs, _ = held.run(rows, batch, run)
            same = all(torch.equal(a, b) for a, b in zip(outputs, alone[thread], strict=True))
            if not same:
                failures.append(thread)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    held.base.verify()


def test_threads_on_a_mixer_that_is_new_learn_its_ways_at_once() -> None:
    held = deltas_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    batch, rows = rows_of(torch.randn(6, 4)), in_turn(6, 3)
    expected = torch.stack(held.define(rows, batch, plain_call))
    barrier, found = threading.Barrier(8), []

    def work() -> None:
        barrier.wait()
        found.append(torch.stack(held.run(rows, batch, plain_call)[0]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for output in found:
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_law08_a_removed_delta_gives_its_bytes_back_and_its_plans_still_run() -> None:
    held = deltas_of(nn.Linear(16, 8))
    batch, rows = rows_of(torch.randn(4, 16)), in_turn(4, 3)
    plan = held.mixer.plan([[(held.keys[i], w) for i, w in row] for row in rows])
    before = held.mixer.run(plan, batch, plain_call)
    key = held.keys[0]
    kept = next(h for group in plan.groups for h, _ in group.members if h.key == key)
    values = weakref.ref(kept.updates["weight"].values)
    size = held.mixer.bytes["deltas"]
    held.mixer.remove(key)
    assert held.mixer.bytes["deltas"] == size - kept.bytes
    assert key not in held.mixer.keys
    after = held.mixer.run(plan, batch, plain_call)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for other in held.mixer.keys:
        held.mixer.remove(other)
    del plan, kept
    held.deltas[0].updates.clear()
    # a plan that runs after the removal writes its terms out again, until others need the room
    held.mixer._executor.forget(key)
    gc.collect()
    assert held.mixer.bytes == {"deltas": 0, "written": 0, "stacked": 0}
    assert values() is None


def test_law03_unknown_keys_and_bad_rows_are_errors() -> None:
    held = deltas_of(nn.Linear(4, 2))
    with pytest.raises(UnknownNameError, match="delta"):
        held.mixer.plan([[("nothing", 1.0)]])
    with pytest.raises(UnknownNameError, match="delta"):
        held.mixer.remove("nothing")
    with pytest.raises(DeltaError, match="a plan needs at least one row"):
        held.mixer.plan([])
    for weight in (math.nan, math.inf, -math.inf):
        with pytest.raises(DeltaError, match="the weight of a delta must be finite"):
            held.mixer.plan([[(held.keys[0], weight)]])
    plan = held.mixer.plan([[], []])
    with pytest.raises(DeltaError, match="a plan of 2 rows for a batch of 3"):
        held.mixer.run(plan, rows_of(torch.zeros(3, 4)), plain_call)
    with pytest.raises(ConfigError, match="written_bytes: 0 or more, not -1"):
        MixerConfig(written_bytes=-1)


@pytest.mark.parametrize("rows", [[()] * 3, in_turn(3, 3)])
def test_law03_a_call_that_returns_other_rows_is_an_error(rows: list[Row]) -> None:
    held = deltas_of(nn.Linear(4, 2))
    with pytest.raises(DeltaError, match=r"call returned shape \(2, 2\) for 3 rows"):
        held.run(rows, rows_of(torch.zeros(3, 4)), lambda m, p, i: m(i["x"])[:2])


def test_law02_a_delta_of_another_base_is_an_error() -> None:
    held = deltas_of(nn.Linear(4, 2))
    with pytest.raises(FingerprintError, match="made for another base"):
        Mixer(load(nn.Linear(4, 2))).add(held.deltas[0])


def test_law01_a_base_that_carries_a_delta_in_place_is_an_error() -> None:
    held = deltas_of(nn.Linear(4, 2))
    batch = rows_of(torch.zeros(1, 4))
    applied = apply(held.base, held.deltas[0])
    with pytest.raises(DeltaError, match="carries a delta applied in place"):
        held.run([[(1, 1.0)]], batch, plain_call)
    applied.detach()
    held.check([[(1, 1.0)]], batch, plain_call)


def test_law01_a_forward_that_changes_a_buffer_of_the_base_is_an_error() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(x)

    held = deltas_of(Counting())
    with pytest.raises(UnsupportedError, match="changed the buffer 'calls' of the base in place"):
        held.run(in_turn(3, 3), rows_of(torch.zeros(3, 4)), plain_call)


def test_outputs_need_no_gradients() -> None:
    held = deltas_of(nn.Linear(4, 2))
    batch = rows_of(torch.randn(4, 4, requires_grad=True))
    outputs, _ = held.run(in_turn(4, 3), batch, plain_call)
    assert not any(output.requires_grad for output in outputs)


def test_an_error_in_a_call_leaves_the_mixer_as_it_was() -> None:
    held = deltas_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    batch, rows = rows_of(torch.randn(4, 4)), in_turn(4, 3)
    broken = [False]

    def run(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        out = module(inputs["x"])
        if broken[0]:
            raise KeyError("mine")
        return out

    held.check(rows, batch, run)
    broken[0] = True
    with pytest.raises(KeyError, match="mine"):
        held.run(rows, batch, run)
    broken[0] = False
    held.check(rows, batch, run)


def test_weights_of_all_deltas_zero_are_the_base() -> None:
    held, source = trained("vit")
    rows = [tuple((i, 0.0) for i in (3, 5))] * 8
    outputs, _ = held.run(rows, source.batch, call(source.case))
    with torch.no_grad():
        plain = source.case.call(held.base.model, source.batch.inputs)
    torch.testing.assert_close(torch.stack(outputs), plain, rtol=1e-5, atol=1e-5)
    assert {kind for kind, *_ in POOL} >= {"scale", "sparse"}


def test_without_room_for_what_is_kept_rows_are_the_same() -> None:
    held, source = trained("gpt2")
    small = Mixer(held.base, MixerConfig(written_bytes=0, stacked_bytes=0))
    keys = [small.add(delta) for delta in held.deltas]
    run = wide(call(source.case))
    expected, _ = held.run(EVERY, source.batch, run)
    for _ in range(2):
        plan = small.plan([[(keys[i], w) for i, w in row] for row in EVERY])
        outputs = small.run(plan, source.batch, run)
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_copies_of_ways_that_were_tried_anew_are_let_go() -> None:
    held, source = trained("lstm")
    run = wide(call(source.case))
    rows: list[Any] = [((which % 3, 1.0),) for which in range(8)]
    held.check(rows, source.batch, run)
    executor = held.mixer._executor
    plan = held.mixer.plan([[(held.keys[which], weight) for which, weight in row] for row in rows])
    before = set(executor._twins)
    assert before
    executor._way(plan.groups, source.batch, run, fresh=True)
    assert not before & set(executor._twins)
    held.check(rows, source.batch, run)
