"""Compiled bases: one graph, and no new one when rows change their deltas."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from graftwork._errors import UnusedTensorError
from graftwork.deltas import run_rows
from graftwork.serving import Mixer, MixerConfig, Report
from graftwork.serving._operator import GROUPS, RUNS
from tests.deltas.test_rows import POOL, Setting, call, setting

Rows = list[list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def drawn(rng: random.Random, rows: int) -> Rows:
    """Rows with lists of one or two deltas, or none, whose heads agree."""
    found: Rows = []
    for _ in range(rows):
        row = [(rng.randrange(len(POOL)), rng.choice([1.0, 0.5, -1.0, 0.0])) for _ in range(2)]
        heads = {POOL[which][2] for which, _ in row if POOL[which][2]}
        found.append(row[: rng.choice([0, 1, 2]) if len(heads) <= 1 else 1])
    return found


def check(mixer: Mixer, held: Setting, keys: list[str], rows: Rows) -> Report:
    batch = held.batch.select(torch.arange(len(rows)))
    lists = [[(held.deltas[which], weight) for which, weight in row] for row in rows]
    expected = run_rows(held.base, lists, batch, call(held.case))
    plan = mixer.plan([[(keys[which], weight) for which, weight in row] for row in rows])
    report = Report()
    outputs = mixer.run(plan, batch, call(held.case), report)
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)
    return report


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "lstm"])
def test_law06_fifty_task_switches_compile_nothing_anew(name: str) -> None:
    held, rng = setting(name, torch.float32), random.Random(0)
    mixer = Mixer(held.base, MixerConfig(compile="aot_eager"))
    keys = [mixer.add(delta) for delta in held.deltas]
    check(mixer, held, keys, drawn(rng, 8))
    warm = graphs()
    assert warm >= 1
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(50):
            assert not check(mixer, held, keys, drawn(rng, 8)).whole
    assert graphs() == warm


@pytest.mark.slow
def test_gpt2_is_one_graph_without_breaks() -> None:
    held = setting("gpt2", torch.float32)
    mixer = Mixer(held.base, MixerConfig(compile="aot_eager"))
    keys = [mixer.add(delta) for delta in held.deltas]
    report = check(mixer, held, keys, [[(which, 1.0)] for which in (0, 1, 2, 3, 4, 5, 0)])
    assert graphs() == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert not report.apart
    assert set(report.together) == {"embedding", "layer_norm", "conv1d", "linear"}


@pytest.mark.slow
def test_batches_are_filled_up_so_that_other_sizes_compile_nothing_anew() -> None:
    held, rng = setting("gpt2", torch.float32), random.Random(1)
    mixer = Mixer(held.base, MixerConfig(compile="aot_eager"))
    keys = [mixer.add(delta) for delta in held.deltas]
    check(mixer, held, keys, drawn(rng, 8))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (7, 5, 6, 8):
            check(mixer, held, keys, drawn(rng, rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "conv"])
def test_what_runs_apart_is_left_out_of_the_graph(name: str) -> None:
    held, rng = setting(name, torch.float32), random.Random(2)
    mixer = Mixer(held.base, MixerConfig(compile="aot_eager"))
    keys = [mixer.add(delta) for delta in held.deltas]
    for _ in range(3):
        report = check(mixer, held, keys, drawn(rng, 8))
    assert report.apart


def test_a_choice_of_a_run_that_is_over_is_an_error() -> None:
    with pytest.raises(UnusedTensorError, match="kept beyond the run"):
        RUNS.find(torch.tensor([10**6 * GROUPS]))
