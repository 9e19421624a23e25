"""The plain sum step against plain loops: accumulation, clipping, schedules, state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork._errors import ConfigError, TrainingError, UnknownNameError
from graftwork.objectives import Model, Objective
from graftwork.steps import STEPS, PlainSum, PlainSumConfig, rate
from graftwork.tuning import Group, Role, Stage

ROLES: tuple[Role, ...] = ("values", "gates", "head")


def squares(model, batch: Batch) -> Tensor:
    return (model(batch) - batch.targets).square()


class Toy:
    """A context over three vectors, one a role; the prediction is a bilinear form of them."""

    accumulate = 1
    index = 0
    where = "step 1"

    def __init__(self, stage: Stage, steps: int = 8, sizes: Sequence[int] = (4,)) -> None:
        self.stage, self.steps = stage, steps
        self.objectives: Mapping[str, Objective] = {"task": squares}
        generator = torch.Generator().manual_seed(3)
        self.roles = {r: nn.Parameter(torch.randn(5, generator=generator)) for r in ROLES}
        self.x = torch.randn(64, 5, generator=generator)
        self.y = torch.randn(64, generator=generator)
        self.sizes, self.drawn, self.start = sizes, 0, 0
        self.penalty = 0.0
        self.calls: list[str] = []

    @property
    def model(self) -> Model:
        return self

    @property
    def groups(self) -> Sequence[Group]:
        return [Group(r, (p,)) for r, p in self.roles.items()]

    def __call__(self, batch: Batch) -> Tensor:
        weight = self.roles["values"] * self.roles["gates"] + self.roles["head"]
        return batch.inputs["x"] @ weight

    def draw(self, stream: str = "train") -> Batch:
        size = self.sizes[self.drawn % len(self.sizes)]
        rows = torch.arange(self.start, self.start + size)
        self.drawn, self.start = self.drawn + 1, self.start + size
        return Batch({"x": self.x[rows]}, self.y[rows], rows)

    def losses(self, objective: Objective, batch: Batch) -> Tensor:
        return objective(self, batch)

    def prepare(self) -> None:
        self.calls.append("prepare")

    def collect(self) -> None:
        self.calls.append("collect")
        if self.penalty:
            self.roles["gates"].grad += self.penalty

    def grad(self, objective: Objective, batch: Batch, *, eval_mode: bool = False) -> list[Tensor]:
        return list(torch.autograd.grad(objective(self, batch).mean(), list(self.roles.values())))

    def measure(self, stream: str = "eval") -> dict[str, float]:
        return {}

    def fork(self) -> object:
        return self.values()

    def restore(self, fork: object) -> None:
        pass

    def reduce(self, tensors: Iterable[Tensor]) -> None:
        list(tensors)

    def values(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.roles.values()]


STAGE = Stage("only", 1.0, dict.fromkeys(ROLES, 0.05), decay=(), clip=None)


def run(context: Toy, config: PlainSumConfig | None = None, steps: int = 1) -> PlainSum:
    step = PlainSum(config)
    step.begin(context)
    for index in range(steps):
        context.index = index
        step.update(context)
    return step


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_accumulated_batches_equal_one_big_batch(sizes: list[int]) -> None:
    parts, whole = Toy(STAGE, sizes=sizes), Toy(STAGE, sizes=[sum(sizes)])
    for context in (parts, whole):
        for p in context.roles.values():
            p.data = p.data.double()
        context.x, context.y = context.x.double(), context.y.double()
    parts.accumulate = len(sizes)
    run(parts)
    run(whole)
    for a, b in zip(parts.values(), whole.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert parts.calls == ["prepare", "collect"]


def test_update_is_adam_of_torch_on_the_mean_loss() -> None:
    context, oracle = Toy(STAGE), Toy(STAGE)
    run(context, steps=5)
    adam = torch.optim.Adam(oracle.roles.values(), lr=0.05)
    for _ in range(5):
        adam.zero_grad()
        squares(oracle, oracle.draw()).mean().backward()
        adam.step()
    for a, b in zip(context.values(), oracle.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_each_role_is_clipped_by_itself() -> None:
    stage = Stage("only", 1.0, dict.fromkeys(ROLES, 0.0), clip=0.5)
    context = Toy(stage)
    context.penalty = 100.0
    seen: dict[str, Tensor] = {}
    step = PlainSum()
    step.begin(context)
    assert step._optimiser is not None
    step._optimiser.step = lambda: seen.update(  # type: ignore[method-assign,assignment]
        {r: p.grad.clone() for r, p in context.roles.items() if p.grad is not None}
    )
    scalars = step.update(context)
    oracle = Toy(stage)
    squares(oracle, oracle.draw()).mean().backward()
    oracle.roles["gates"].grad += 100.0
    for role in ROLES:
        gradient = oracle.roles[role].grad
        assert gradient is not None
        assert scalars[f"norm/{role}"] == pytest.approx(gradient.norm().item())
        expected = gradient * min(1.0, 0.5 / gradient.norm().item())
        torch.testing.assert_close(seen[role], expected)


def test_roles_without_a_rate_stay_as_they_are() -> None:
    context = Toy(Stage("head only", 1.0, {"head": 0.1}))
    before = context.values()
    run(context, steps=3)
    after = context.values()
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])
    assert all(p.grad is None for p in context.roles.values())


def test_stage_that_trains_nothing_still_collects() -> None:
    context = Toy(Stage("scores", 1.0, {}))
    before = context.values()
    step = run(context, steps=2)
    assert context.calls == ["prepare", "collect"] * 2
    assert all(torch.equal(a, b) for a, b in zip(before, context.values(), strict=True))
    assert step.tensors() == {}


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0.0, [1.0, 0.75, 0.5, 0.25]),
        ("constant", 0.0, [1.0] * 4),
        ("cosine", 0.0, [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1.0, 0.5]),
        ("constant", 0.5, [1 / 3, 2 / 3, 1.0, 1.0]),
    ],
)
def test_schedule_values(schedule, warmup: float, expected: list[float]) -> None:
    config = PlainSumConfig(schedule=schedule, warmup=warmup)
    stage = Stage("s", 1.0, {"values": 2.0, "gates": 2.0}, decay=("values",))
    got = [rate(config, stage, "values", i, 4) for i in range(4)]
    assert got == pytest.approx([2.0 * e for e in expected])
    gates = [rate(config, stage, "gates", i, 4) for i in range(4)]
    assert gates[2:] == [2.0, 2.0]


@given(
    st.sampled_from(["linear", "cosine", "constant"]),
    st.floats(0.0, 0.99),
    st.integers(1, 50),
)
def test_rates_stay_in_bounds(schedule, warmup: float, steps: int) -> None:
    config = PlainSumConfig(schedule=schedule, warmup=warmup)
    stage = Stage("s", 1.0, {"values": 0.3})
    rates = [rate(config, stage, "values", i, steps) for i in range(steps)]
    assert all(0.0 < r <= 0.3 for r in rates)


def test_state_restores_bit_for_bit() -> None:
    config = PlainSumConfig(weight_decay=0.01)
    through = Toy(STAGE)
    run(through, config, steps=6)

    first = Toy(STAGE)
    step = run(first, config, steps=3)
    saved = {name: t.clone() for name, t in step.tensors().items()}
    assert {name.split(".")[0] for name in saved} == set(ROLES)

    second = Toy(STAGE)
    for role, value in zip(ROLES, first.values(), strict=True):
        second.roles[role].data = value
    second.start = first.start
    resumed = PlainSum(config)
    resumed.begin(second)
    resumed.load_tensors(saved)
    for index in range(3, 6):
        second.index = index
        resumed.update(second)
    assert all(torch.equal(a, b) for a, b in zip(through.values(), second.values(), strict=True))


def test_state_of_other_values_is_an_error() -> None:
    step = run(Toy(STAGE))
    state = step.tensors()
    fresh = PlainSum()
    fresh.begin(Toy(Stage("head only", 1.0, {"head": 0.1})))
    with pytest.raises(TrainingError, match="unknown values"):
        fresh.load_tensors(state)
    fresh.begin(Toy(STAGE))
    with pytest.raises(TrainingError, match=r"head\.0 does not fit"):
        fresh.load_tensors({**state, "head.0.exp_avg": torch.zeros(2)})


def test_gradient_that_overflows_stops_before_the_step() -> None:
    context = Toy(STAGE)
    context.penalty = math.inf
    before = context.values()
    with pytest.raises(TrainingError, match="step 1: the gradient norm of the gates"):
        run(context)
    assert all(torch.equal(a, b) for a, b in zip(before, context.values(), strict=True))


def test_weighted_objectives() -> None:
    def halves(model, batch: Batch) -> Tensor:
        return 0.5 * squares(model, batch)

    context, oracle = Toy(STAGE), Toy(STAGE)
    context.objectives = {"task": squares, "half": halves}
    run(context, PlainSumConfig(weights={"half": 4.0}))
    oracle.objectives = {"task": lambda m, b: 3.0 * squares(m, b)}
    run(oracle)
    assert context.drawn == 1
    for a, b in zip(context.values(), oracle.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_unknown_objective_and_bad_values() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'task'"):
        run(Toy(STAGE), PlainSumConfig(weights={"taks": 1.0}))
    with pytest.raises(ConfigError, match="warmup"):
        PlainSumConfig(warmup=1.0)
    with pytest.raises(ConfigError, match="betas"):
        PlainSumConfig(betas=(0.9, 1.0))
    with pytest.raises(ConfigError, match="eps > 0"):
        PlainSumConfig(eps=0.0)


def test_weight_decay_spares_gates() -> None:
    context = Toy(Stage("s", 1.0, dict.fromkeys(ROLES, 1e-12), decay=()))
    step = PlainSum(PlainSumConfig(weight_decay=0.1))
    step.begin(context)
    assert step._optimiser is not None
    assert [g["weight_decay"] for g in step._optimiser.param_groups] == [0.1, 0.0, 0.1]


def test_every_step_of_the_table_builds() -> None:
    for config in STEPS.values():
        assert repr(config().build())
