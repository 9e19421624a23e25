"""What tests of mixed batches share: deltas of any base, and the comparison with `run_rows`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork.bases import Base, load
from graftwork.deltas import (
    Delta,
    Fingerprint,
    LowRank,
    Sparse,
    Update,
    fingerprint_of,
    run_rows,
)
from graftwork.serving import Mixer, Report
from graftwork.serving._probe import Call
from tests.battery.models import CASES
from tests.deltas.test_rows import Setting, setting

Row = Sequence[tuple[int, float]]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of the largest entry of a row. Bases of 16 bits round `W'` to them by the definition, and the
products with `W` and with the delta apart in a mixed batch: neither is nearer to the truth."""


@dataclass(frozen=True)
class Held:
    """A base, deltas of it, and a mixer that holds them."""

    base: Base
    deltas: tuple[Delta, ...]
    mixer: Mixer
    keys: tuple[str, ...]

    @classmethod
    def of(cls, base: Base, deltas: Sequence[Delta]) -> Held:
        mixer = Mixer(base)
        return cls(base, tuple(deltas), mixer, tuple(mixer.add(delta) for delta in deltas))

    def run(self, rows: Sequence[Row], batch: Batch, call: Call) -> tuple[list[Tensor], Report]:
        report = Report()
        plan = self.mixer.plan([[(self.keys[i], w) for i, w in row] for row in rows])
        return self.mixer.run(plan, batch, call, report), report

    def define(self, rows: Sequence[Row], batch: Batch, call: Call) -> list[Tensor]:
        lists = [[(self.deltas[i], w) for i, w in row] for row in rows]
        return run_rows(self.base, lists, batch, call)

    def check(
        self, rows: Sequence[Row], batch: Batch, call: Call, tolerance: float = 1e-5
    ) -> Report:
        """Run rows both ways and compare; return how they ran."""
        outputs, report = self.run(rows, batch, call)
        expected = self.define(rows, batch, call)
        assert len(outputs) == len(expected) == len(rows)
        for row, output, wanted in zip(rows, outputs, expected, strict=True):
            assert output.shape == wanted.shape
            assert output.dtype == wanted.dtype
            bound = tolerance * max(1.0, wanted.abs().max().item())
            assert (output - wanted).abs().max().item() <= bound, row
        return report


@functools.cache
def trained(name: str, dtype: torch.dtype = torch.float32) -> tuple[Held, Setting]:
    """Return a model of the battery with its trained deltas."""
    source = setting(name, torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype in (torch.float64, torch.float32):
        return Held.of(source.base, source.deltas), source
    base = load(CASES[name].build(dtype))
    deltas = [
        replace(d, fingerprint=Fingerprint(base.prints(d.updates), dict(base.processing)))
        for d in source.deltas
    ]
    return Held.of(base, deltas), replace(source, batch=CASES[name].batch(8, dtype=dtype))


def wide(call: Call) -> Call:
    """Return a call whose heads get float32 from bases of 16 bits."""

    def run(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        logits = call(module, nn.ModuleDict(), inputs)
        logits = logits.float() if logits.element_size() == 2 else logits
        return ports["head"](logits) if "head" in ports else logits

    return run


def deltas_of(
    model: nn.Module,
    count: int = 3,
    touches: Callable[[str], bool] = lambda _: True,
    size: float = 0.3,
) -> Held:
    """Return a base of `model` with deltas of three kinds: sparse, dense, low-rank and sparse."""
    base = load(model)
    names = [name for name in base.names.pieces if touches(name)]
    assert names
    found = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        updates = {
            name: _update(base.names[name].shape, seed % 3, size, generator) for name in names
        }
        found.append(Delta(updates, fingerprint=fingerprint_of(base, names)))
    return Held.of(base, found)


def _update(shape: tuple[int, ...], kind: int, size: float, generator: torch.Generator) -> Update:
    numel = int(torch.Size(shape).numel())
    positions = torch.randperm(numel, generator=generator)[: max(1, numel // 3)].sort().values
    values = size * torch.randn(len(positions), generator=generator)
    if kind == 1:
        return Update(shape, dense=size * torch.randn(shape, generator=generator))
    low = None
    if kind == 2 and len(shape) == 2:
        left = size * torch.randn(shape[0], 2, generator=generator)
        low = LowRank(left, torch.randn(2, shape[1], generator=generator), 0.5)
    return Update(shape, sparse=Sparse(positions, values), low_rank=low)


def rows_of(inputs: Mapping[str, Tensor] | Tensor) -> Batch:
    """Return a batch of inputs, or of one input called "x"."""
    tree = {"x": inputs} if isinstance(inputs, Tensor) else inputs
    return Batch(tree, None, torch.arange(len(next(iter(tree.values())))))


def plain_call(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
    """Run a module on "x", then its head."""
    out = module(inputs["x"])
    return ports["head"](out) if "head" in ports else out


def in_turn(rows: int, deltas: int) -> list[Row]:
    """Return rows with one delta each in turn, and none."""
    return [((i % (deltas + 1), 1.0),) if i % (deltas + 1) < deltas else () for i in range(rows)]
