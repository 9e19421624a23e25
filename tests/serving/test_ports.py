"""Ports in mixed batches: heads of any size, bottlenecks, embedders; the base runs once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork._errors import DeltaError, UnusedTensorError
from graftwork.deltas import Delta, Fingerprint, fingerprint_of, port_of
from graftwork.nn import Bottleneck, Head, InputEmbedder, Prefix, Prompt
from tests.battery import mixed
from tests.battery.models import CASES
from tests.serving.support import Held, deltas_of, rows_of, trained

WIDTH = 4


class Body(nn.Module):
    """Counts how often it runs, in a list that copies share."""

    def __init__(self, ran: list[int]) -> None:
        super().__init__()
        self.layer, self.ran = nn.Linear(WIDTH, WIDTH), ran

    def __deepcopy__(self, memo: Any) -> Body:
        twin = Body(self.ran)
        twin.layer = nn.Linear(WIDTH, WIDTH)
        for name, parameter in self.layer.named_parameters():
            setattr(twin.layer, name, memo.get(id(parameter), parameter))
        memo[id(self)] = twin
        return twin

    def forward(self, x: Tensor) -> Tensor:
        self.ran.append(len(x))
        out: Tensor = self.layer(x).tanh()
        return out


def head(labels: int, seed: int = 0, hidden: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Head(WIDTH, labels, hidden=hidden) if hidden else Head(WIDTH, labels)
    config = {"in_features": WIDTH, "out_features": labels}
    return port_of(module, "head", {**config, "hidden": hidden} if hidden else config)


def with_heads(labels: list[int], ran: list[int] | None = None) -> Held:
    """Return deltas with heads of these labels; 0: none."""
    torch.manual_seed(0)
    held = deltas_of(Body([] if ran is None else ran), count=len(labels))
    deltas = [
        replace(delta, ports={"head": head(size, seed)} if size else {})
        for seed, (delta, size) in enumerate(zip(held.deltas, labels, strict=True))
    ]
    return Held.of(held.base, deltas)


def call(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
    hidden = module(inputs["x"])
    return ports["head"](hidden) if "head" in ports else hidden


ROWS: list[Any] = [((i % 5, 1.0),) if i % 5 < 4 else () for i in range(10)]


def test_law06_heads_of_every_size_and_none_in_one_batch_run_the_base_once() -> None:
    ran: list[int] = []
    held = with_heads([2, 3, 0, 3], ran)
    x = torch.randn(10, WIDTH)
    report = held.check(ROWS, rows_of(x), call)
    assert report.together == {"linear": 1}
    ran.clear()
    outputs, _ = held.run(ROWS, rows_of(x), call)
    assert ran == [10]
    assert [len(output) for output in outputs] == [2, 3, 4, 3, 4] * 2


@pytest.mark.parametrize(
    "after",
    [
        lambda scores: scores.softmax(-1),
        lambda scores: scores.argmax(-1),
        lambda scores: scores.topk(2).values,
        lambda scores: scores - scores.mean(-1, keepdim=True),
    ],
)
def test_what_a_call_does_after_a_head_sees_its_own_columns_only(after: Any) -> None:
    held = with_heads([2, 3, 5, 3])
    rows = [row for row in ROWS if row]
    held.check(rows, rows_of(torch.randn(8, WIDTH)), lambda m, p, i: after(call(m, p, i)))


def test_a_call_may_change_what_the_base_gave_in_place() -> None:
    held = with_heads([2, 3, 0, 3])

    def rough(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        hidden = module(inputs["x"])
        hidden *= 0.5
        return ports["head"](hidden) if "head" in ports else hidden

    held.check(ROWS, rows_of(torch.randn(10, WIDTH)), rough)


def test_heads_get_rows_in_any_dimension() -> None:
    held = with_heads([2, 3, 0, 3])

    def time_first(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        hidden = module(inputs["x"].transpose(0, 1))
        return (ports["head"](hidden) if "head" in ports else hidden).transpose(0, 1)

    # as many positions as rows
    held.check(ROWS, rows_of(torch.randn(10, 10, WIDTH)), time_first)


def test_mixed_heads_of_one_row() -> None:
    held = with_heads([3, 3, 0, 3])
    rows: list[Any] = [((0, 0.5), (1, -2.0)), ((2, 1.0), (3, 0.5)), (), ((0, 1.0),)]
    held.check(rows, rows_of(torch.randn(4, WIDTH)), call)


def test_law03_heads_of_different_sizes_in_one_row_are_an_error() -> None:
    held = with_heads([2, 3])
    with pytest.raises(DeltaError, match=r"different shapes, \(2,\) and \(3,\)"):
        held.run([((0, 0.5), (1, 0.5))], rows_of(torch.randn(1, WIDTH)), call)


def test_law07_a_head_that_the_call_does_not_run_is_an_error() -> None:
    held = with_heads([2, 3])
    with pytest.raises(UnusedTensorError, match="'head'"):
        held.run(
            [((0, 1.0),), ((1, 1.0),)],
            rows_of(torch.randn(2, WIDTH)),
            lambda m, p, i: m(i["x"]),
        )


@pytest.mark.parametrize("path", ["layer.weight"])
def test_bottlenecks_inside_the_base_stand_beside_rows_without(path: str) -> None:
    held = with_heads([0, 0, 0, 3])
    deltas = list(held.deltas)
    for index in (0, 1):
        torch.manual_seed(index)
        module = Bottleneck(WIDTH, 2 + index)
        nn.init.normal_(module.up.weight)
        port = port_of(module, "bottleneck", {"width": WIDTH, "size": 2 + index}, "float32")
        deltas[index] = replace(
            deltas[index],
            ports={f"bottleneck:{path}": port},
            fingerprint=Fingerprint(held.base.prints(["layer.weight", "layer.bias"])),
        )
    both = Held.of(held.base, deltas)
    rows: list[Any] = [*ROWS[:8], ((0, 0.5), (1, -1.0)), ((1, 1.0), (2, 0.25))]
    report = both.check(rows, rows_of(torch.randn(10, WIDTH)), call)
    assert not report.whole


def test_embedders_of_foreign_inputs_beside_rows_of_the_bases_own() -> None:
    held = deltas_of(Body([]), count=2)
    torch.manual_seed(0)
    port = port_of(InputEmbedder(3, WIDTH), "input", {"in_features": 3, "width": WIDTH})
    deltas = [held.deltas[0], replace(held.deltas[1], ports={"input": port})]

    def either(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        x = ports["input"](inputs["f"]) if "input" in ports else inputs["x"]
        return module(x)

    batch = rows_of({"x": torch.randn(4, WIDTH), "f": torch.randn(4, 3)})
    Held.of(held.base, deltas).check([((0, 1.0),), ((1, 1.0),), (), ((1, 1.0),)], batch, either)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prompt", "bottleneck"])
def test_trained_modules_inside_a_transformer(kind: str) -> None:
    case = CASES["bert"]
    deltas: list[Delta] = mixed.port_deltas(kind, case)
    base, _ = mixed.tuned_base("bert")
    held = Held.of(base, deltas)
    rows: list[Any] = [((0, 1.0),), (), ((1, 1.0),), ((0, 1.0),)]
    report = held.check(rows, case.batch(4), mixed.forward_of(case))
    assert not report.apart


def longer(base: Any, delta: Delta, kind: str, length: int) -> Delta:
    """Return a delta with a prompt, or prefix, of random vectors."""
    sizes = {"layers": 2, "heads": 2, "width": 8} if kind == "prefix" else {"width": 16}
    module: nn.Module = {"prompt": Prompt, "prefix": Prefix}[kind](
        length=length, deviation=1.0, **sizes
    )
    table = next(name for name in base.names.pieces if "word_embeddings" in name or "wte" in name)
    ports = {**delta.ports, f"{kind}:{table}": port_of(module, kind, {"length": length, **sizes})}
    return replace(delta, ports=ports, fingerprint=fingerprint_of(base, delta.updates, ports))


@pytest.mark.parametrize(
    ("name", "kind"), [("bert", "prompt"), ("gpt2", "prompt"), ("gpt2", "prefix")]
)
def test_prompts_of_one_length_share_a_forward_of_the_base(name: str, kind: str) -> None:
    held, source = trained(name)
    torch.manual_seed(0)
    lengths = [2, 2, 3, 2]
    with_prompts = [
        longer(held.base, delta, kind, length)
        for delta, length in zip(held.deltas, lengths, strict=False)
    ]
    held = Held.of(held.base, [*with_prompts, held.deltas[5]])
    rows: list[Any] = [((i % 5, 1.0),) for i in range(7)] + [()]
    call = mixed.forward_of(source.case)
    report = held.check(rows, source.batch, call)
    assert not report.whole
    # forwards: without prompts, with two vectors, with three
    norms = sum(isinstance(module, nn.LayerNorm) for module in held.base.model.modules())
    assert report.together["layer_norm"] <= 3 * norms
