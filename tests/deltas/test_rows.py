"""The reference row executor against one row at a time, applied in place on a deep copy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.battery.deltas import _numbers, oracle, trained_delta
from tests.battery.models import CASES, Case, Experts
from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork._errors import DeltaError, FingerprintError, UnusedTensorError
from graftwork.bases import Base, load
from graftwork.deltas import Delta, Fingerprint, Update, port_of, run_rows
from graftwork.nn import Bottleneck, Prompt

# (kind, share of the parameters, labels of its head or 0)
POOL = (
    ("sparse", 1.0, 3),
    ("low_rank", 1.0, 3),
    ("dense", 0.5, 5),
    ("scale", 1.0, 0),
    ("mixed", 0.7, 2),
    ("sparse", 0.3, 0),
)
Row = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Setting:
    case: Case
    base: Base
    deltas: tuple[Delta, ...]
    batch: Batch


@functools.cache
def setting(name: str, dtype: torch.dtype) -> Setting:
    case = CASES[name]
    base = load(case.build(dtype))
    deltas = tuple(
        trained_delta(case, base, kind, share=share, labels=labels, seed=i)
        for i, (kind, share, labels) in enumerate(POOL)
    )
    return Setting(case, base, deltas, case.batch(8, dtype=dtype))


def call(case: Case):
    def run(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        logits = case.call(module, inputs)
        return ports["head"](logits) if "head" in ports else logits

    return run


def one_row(held: Setting, index: int, row: Row) -> Tensor:
    """Oracle: write W + sum_i w_i (W_i - W) into a deep copy, run one row, add weighted heads."""
    import copy

    module = copy.deepcopy(held.base.model)
    for name, piece in held.base.names.pieces.items():
        target = piece.of(module.get_parameter(piece.parameter))
        weight = target.detach().double().clone()
        out = weight.clone()
        for which, factor in row:
            if name in held.deltas[which].updates:
                out += factor * (oracle(held.deltas[which].updates[name], weight) - weight)
        with torch.no_grad():
            target.copy_(out)
    inputs = {k: v[index : index + 1] for k, v in held.batch.inputs.items()}
    logits = held.case.call(module, inputs)[0]
    heads = [(held.deltas[which], factor) for which, factor in row if held.deltas[which].ports]
    if not heads:
        return logits
    return sum(factor * _head(delta, logits) for delta, factor in heads)


def _head(delta: Delta, x: Tensor) -> Tensor:
    tensors = {k: _numbers(v) for k, v in delta.ports["head"].tensors.items()}
    middle = torch.tanh(x.double() @ tensors["hidden.weight"].T + tensors["hidden.bias"])
    return middle @ tensors["out.weight"].T + tensors["out.bias"]


def _sizes(row: Row) -> set[int]:
    return {POOL[which][2] for which, _ in row if POOL[which][2]}


WEIGHTS = st.sampled_from([1.0, 1.0, 0.0, -1.0, 0.5, -0.25, 1.5])
ROWS = (
    st.lists(st.tuples(st.integers(0, len(POOL) - 1), WEIGHTS), max_size=3)
    .map(tuple)
    .filter(lambda row: len(_sizes(row)) <= 1)
)


def check_rows(name: str, dtype: torch.dtype, rows: Sequence[Row], order: Sequence[int]) -> None:
    held = setting(name, dtype)
    batch = held.batch.select(torch.tensor(order[: len(rows)]))
    lists = [[(held.deltas[which], factor) for which, factor in row] for row in rows]
    outputs = run_rows(held.base, lists, batch, call(held.case))
    assert len(outputs) == len(rows)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for index, row, output in zip(order, rows, outputs, strict=False):
        expected = one_row(held, index, row)
        assert output.shape == expected.shape
        bound = tolerance * max(1.0, expected.abs().max().item())
        assert (output - expected).abs().max().item() <= bound


@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=st.lists(ROWS, min_size=1, max_size=8), order=st.permutations(range(8)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_law06_each_row_equals_its_single_task_run(
    dtype: torch.dtype, rows: list[Row], order: list[int]
) -> None:
    check_rows("lstm", dtype, rows, order)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(rows=st.lists(ROWS, min_size=8, max_size=8), order=st.permutations(range(8)))
@pytest.mark.parametrize("name", [n for n in CASES if n != "lstm"])
def test_law06_rows_on_the_whole_battery(name: str, rows: list[Row], order: list[int]) -> None:
    check_rows(name, torch.float64, rows, order)


@pytest.mark.parametrize("name", CASES)
def test_law06_every_kind_and_base_only_rows_in_one_batch(name: str) -> None:
    rows: list[Row] = [
        (),
        ((0, 1.0),),
        ((1, 1.0), (3, 0.5)),
        ((2, -0.5),),
        ((4, 1.0), (5, 1.0)),
        (),
        ((3, 0.0),),
        ((0, 0.75), (1, 0.25)),
    ]
    check_rows(name, torch.float32, rows, range(8))
    held = setting(name, torch.float32)
    held.base.verify()


def test_law06_base_only_rows_get_the_call_without_ports() -> None:
    held = setting("bert", torch.float32)
    seen: list[list[str]] = []

    def spy(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        seen.append(list(ports))
        return call(held.case)(module, ports, inputs)

    plain = held.case.call(held.base.model, held.batch.inputs)
    outputs = run_rows(held.base, [[]] * 8, held.batch, spy)
    assert seen == [[]]
    assert torch.equal(torch.stack(outputs), plain)


def test_rows_with_the_same_list_run_together_and_equal_weights_only() -> None:
    held = setting("lstm", torch.float32)
    first, second = held.deltas[0], held.deltas[1]
    sizes: list[int] = []

    def spy(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        sizes.append(inputs["input_ids"].shape[0])
        return call(held.case)(module, ports, inputs)

    rows = [[(first, 1.0)], [(second, 1.0)], [(first, 1.0)], [(first, 0.5)], [(first, 1)]]
    run_rows(held.base, rows, held.batch.select(torch.arange(5)), spy)
    assert sizes == [3, 1, 1]


def test_law03_batches_and_lists_must_agree() -> None:
    held = setting("lstm", torch.float32)
    with pytest.raises(DeltaError, match="3 lists of deltas for a batch of 8 rows"):
        run_rows(held.base, [[]] * 3, held.batch, call(held.case))
    with pytest.raises(DeltaError, match=r"returned shape \(2,\) for a group of 8 rows"):
        run_rows(held.base, [[]] * 8, held.batch, lambda m, p, i: torch.zeros(2))


def test_packed_rows_come_with_row_of_and_equal_rows_alone() -> None:
    base = load(nn.Linear(2, 3))
    shape = (3, 2)
    delta = Delta(
        {"weight": Update(shape, dense=torch.ones(shape))},
        fingerprint=Fingerprint(base.prints(["weight"])),
    )
    sizes = [2, 1, 3]
    points = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    row_of = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    batch = Batch({"x": points}, None, torch.arange(3), row_of)

    def pooled(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        out = module(inputs["x"])
        rows = int(inputs["row_of"].max()) + 1
        return torch.zeros(rows, 3).index_add_(0, inputs["row_of"], out)

    outputs = run_rows(base, [[(delta, 1.0)], [], [(delta, -2.0)]], batch, pooled)
    for row, (points_of, factor) in enumerate(zip(points.split(sizes), (1, 0, -2), strict=True)):
        weight = base.model.weight + factor * torch.ones(shape)
        expected = (points_of @ weight.T + base.model.bias).sum(0)
        torch.testing.assert_close(outputs[row], expected)


def test_law03_heads_of_different_shapes_in_one_row_are_an_error() -> None:
    held = setting("lstm", torch.float32)
    row = [(held.deltas[0], 0.5), (held.deltas[2], 0.5)]
    with pytest.raises(DeltaError, match=r"different shapes, \(3,\) and \(5,\)"):
        run_rows(held.base, [row], held.batch.select(torch.arange(1)), call(held.case))


def test_law03_prompts_cannot_be_mixed() -> None:
    held = setting("lstm", torch.float32)
    ports = {"prompt": port_of(Prompt(2, 4), "prompt", {"length": 2, "width": 4})}
    delta = Delta({}, ports)
    one = held.batch.select(torch.arange(1))
    for row in ([(delta, 0.5)], [(delta, 1.0), (Delta({}, ports), 1.0)]):
        with pytest.raises(DeltaError, match="of kind prompt cannot be mixed or weighted"):
            run_rows(held.base, [row], one, call(held.case))


def test_bottlenecks_add_their_weighted_contributions() -> None:
    held = setting("lstm", torch.float64)
    deltas = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = Bottleneck(2, 3)
        nn.init.normal_(module.up.weight)
        port = port_of(module, "bottleneck", {"width": 2, "size": 3}, "float32")
        deltas.append((Delta({}, {"after": port}), module))

    def run(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        return ports["after"](held.case.call(module, inputs))

    one = held.batch.select(torch.arange(1))
    row = [(deltas[0][0], 0.5), (deltas[1][0], -2.0)]
    (output,) = run_rows(held.base, [row], one, run)
    x = held.case.call(held.base.model, one.inputs)[0]
    expected = x + 0.5 * (deltas[0][1](x) - x) - 2.0 * (deltas[1][1](x) - x)
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=0)


def test_law07_a_port_that_the_call_does_not_run_is_an_error() -> None:
    held = setting("lstm", torch.float32)
    row = [(held.deltas[0], 1.0)]
    one = held.batch.select(torch.arange(1))
    with pytest.raises(UnusedTensorError, match="port 'head' of the delta was not consumed"):
        run_rows(held.base, [row], one, lambda m, p, i: held.case.call(m, i))


def test_law07_a_tensor_that_the_call_does_not_reach_is_an_error() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = Experts(), Experts()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    base = load(Two())
    shape = base.names["idle.down"].shape
    delta = Delta(
        {"idle.down": Update(shape, dense=torch.ones(shape))},
        fingerprint=Fingerprint(base.prints(["idle.down"])),
    )
    batch = CASES["experts"].batch(2)
    with pytest.raises(UnusedTensorError, match=r"'idle\.down'"):
        # the parts are called one by one, so no hook of the whole runs
        run_rows(base, [[(delta, 1.0)]] * 2, batch, lambda m, p, i: m.used(i["x"]))


def test_law02_rows_check_fingerprints() -> None:
    held = setting("lstm", torch.float32)
    other = load(held.case.build(seed=3))
    one = held.batch.select(torch.arange(1))
    with pytest.raises(FingerprintError):
        run_rows(other, [[(held.deltas[3], 1.0)]], one, call(held.case))
