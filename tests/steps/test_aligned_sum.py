"""The step that watches an alignment: when it looks, when it ends, what it restores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from graftwork._batch import Batch
from graftwork._errors import ConfigError
from graftwork.nn import Patches
from graftwork.objectives import Align
from graftwork.steps import AlignedSum, AlignedSumConfig, PlainSumConfig
from graftwork.tuning import Group, Stage, TuningWarning

LABELS = torch.arange(12) % 3


class Model:
    """What alignment needs of a model: its ports."""

    def __init__(self, port: nn.Module) -> None:
        self.ports = nn.ModuleDict({"input": port})

    def __call__(self, batch: Batch) -> torch.Tensor:
        return self.ports["input"](batch.inputs["x"])


class Toy:
    """A context over one port."""

    where = "step 1"

    def __init__(self, distance: Any, rate: float = 0.05, steps: int = 40) -> None:
        torch.manual_seed(0)
        self.port = Patches(1, [2], 4)
        self.model = Model(self.port)
        rng = torch.Generator().manual_seed(1)
        x = torch.randn(12, 6, generator=rng) + LABELS[:, None]
        self.batch = Batch({"x": x}, LABELS, torch.arange(12))
        source = (torch.randn(10, 4, generator=rng), torch.arange(10) % 2)
        align = Align(source=source, distance=distance, probe=self.batch)
        self.objectives = {"align": align}
        self.stage = Stage("align", 1.0, {"input": rate}, decay=(), objectives=("align",))
        self.index, self.steps, self.accumulate, self.drawn = 0, steps, 1, []

    @property
    def groups(self) -> list[Group]:
        return [Group("input", tuple(self.port.parameters()))]

    def draw(self, stream: str = "train") -> Batch:
        self.drawn.append(stream)
        return self.batch

    def losses(self, objective: Any, batch: Batch) -> torch.Tensor:
        return objective(self.model, batch)

    def prepare(self) -> None: ...

    def collect(self) -> None: ...

    def reduce(self, tensors: Any) -> None: ...

    def grad(self, objective: Any, batch: Batch, *, eval_mode: bool = False) -> list: ...

    def measure(self, stream: str = "eval") -> dict[str, float]: ...

    def fork(self) -> object: ...

    def restore(self, fork: object) -> None: ...


def _run(toy: Toy, step: AlignedSum, upto: int | None = None) -> list[dict[str, float]]:
    found = []
    while toy.index < (upto or toy.steps):
        found.append(step.update(toy))
        toy.index += 1
    return found


def spread(first: Any, second: Any) -> torch.Tensor:
    """A distance that falls as all rows go to one point: classes collapse."""
    return (first[0] - second[0].mean(0)).square().sum(1).mean() + 0.1


def test_looks_come_in_time_and_the_stream_is_its_own() -> None:
    toy = Toy("mmd")
    step = AlignedSumConfig(every=7, patience=0, floor=0.0).build()
    step.begin(toy)
    found = _run(toy, step)
    assert set(toy.drawn) == {"align"}
    changes = [i for i in range(1, 40) if found[i]["distance"] != found[i - 1]["distance"]]
    assert changes == [7, 14, 21, 28, 35, 39]
    assert [row["aligning"] for row in found] == [1.0] * 39 + [0.0]


def test_a_distance_that_stays_ends_it_at_the_best_look() -> None:
    toy = Toy(lambda first, second: (first[0] * 0.0).sum() + 1.0)
    before = [p.clone() for p in toy.port.parameters()]
    step = AlignedSumConfig(every=2, patience=3, floor=0.0).build()
    step.begin(toy)
    found = _run(toy, step)
    assert [row["aligning"] for row in found].index(0.0) == 6
    assert len(toy.drawn) == 6
    assert all(torch.equal(a, b) for a, b in zip(before, toy.port.parameters(), strict=True))


def test_collapse_goes_back_to_values_above_the_floor() -> None:
    toy = Toy(spread, rate=0.2, steps=80)
    step = AlignedSumConfig(every=2, patience=0, floor=0.5).build()
    align = toy.objectives["align"]
    first = align.look(toy.model).separability
    step.begin(toy)
    with pytest.warns(TuningWarning, match=r"separability fell from 0\.\d+ to 0\.\d+"):
        found = _run(toy, step)
    assert found[-1]["collapsed"] == 1.0
    assert found[-1]["separability"] < 0.5 * first
    assert align.look(toy.model).separability >= 0.5 * first


def test_state_goes_on_exactly() -> None:
    whole, parts = Toy("mmd"), [Toy("mmd"), Toy("mmd")]
    steps = [AlignedSumConfig(every=3).build() for _ in range(3)]
    steps[0].begin(whole)
    _run(whole, steps[0])
    steps[1].begin(parts[0])
    _run(parts[0], steps[1], 10)
    kept = {n: t.clone() for n, t in steps[1].tensors().items()}
    parts[1].port.load_state_dict(parts[0].port.state_dict())
    parts[1].index = 10
    steps[2].begin(parts[1])
    steps[2].load_tensors(kept)
    _run(parts[1], steps[2])
    for a, b in zip(whole.port.parameters(), parts[1].port.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_stages_are_a_plain_sum() -> None:
    toy = Toy("mmd")
    toy.objectives = {"task": lambda model, batch: model(batch)[:, 0, 0]}
    toy.stage = Stage("fixed", 1.0, {"input": 0.1}, objectives=("task",))
    step = AlignedSum(AlignedSumConfig(sum=PlainSumConfig(schedule="constant")))
    step.begin(toy)
    found = _run(toy, step)
    assert set(toy.drawn) == {"train"}
    assert "distance" not in found[0]
    assert found[-1]["loss"] < found[0]["loss"]
    assert not any(name.startswith("watch") for name in step.tensors())


def test_values_out_of_range_are_named() -> None:
    for wrong in ({"every": 0}, {"patience": -1}, {"floor": 1.0}, {"gain": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AlignedSumConfig(**wrong)
