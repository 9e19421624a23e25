"""A whole module in training: same loop as by hand, roles, resume to the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from graftwork.errors import ConfigError, UnknownNameError
from graftwork.objectives import Model
from graftwork.steps import PlainSum, PlainSumConfig
from graftwork.tasks import Batch, Task
from graftwork.training import Checkpoints, TrainConfig, Whole, fit
from graftwork.tuning import Stage


class Points:
    """Points of a plane and which side of a line they are on: batch i depends on i alone."""

    name, digest, groups = "train", "points", None

    def __init__(self) -> None:
        self.index = 0

    def draw(self) -> Batch:
        generator = torch.Generator().manual_seed(self.index)
        self.index += 1
        x = torch.randn(16, 2, generator=generator)
        return Batch({"input": x}, (x[:, 0] > x[:, 1]).float(), torch.arange(16))

    def once(self, batch_size: int | None = None, *, by_length: bool = False) -> Iterator[Batch]:
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        return {"index": torch.tensor(self.index)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.index = int(state["index"])


def logistic(model: Model, batch: Batch) -> Tensor:
    assert batch.targets is not None
    return nn.functional.binary_cross_entropy_with_logits(
        model(batch)[:, 0], batch.targets, reduction="none"
    )


def make() -> tuple[nn.Module, Task]:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(2, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)
    )
    return module, Task(streams={"train": Points()}, objectives={"task": logistic})


def stage(**rates: float) -> Stage:
    return Stage("train", 1.0, rates, clip=None)


def run(module: nn.Module, task: Task, steps: int, checkpoints: Checkpoints | None = None) -> None:
    trainee = Whole(module, stage(values=1e-2))
    step = PlainSum(PlainSumConfig(schedule="constant"))
    fit(trainee, task, TrainConfig(steps=steps, save_every=5), step=step, checkpoints=checkpoints)


def test_training_is_a_plain_adam_loop() -> None:
    module, task = make()
    run(module, task, 60)
    other, same = make()
    optimiser = torch.optim.Adam(other.parameters(), lr=1e-2)
    for _ in range(60):
        batch = same.streams["train"].draw()
        assert batch.targets is not None
        loss = nn.functional.binary_cross_entropy_with_logits(
            other(batch.inputs["input"])[:, 0], batch.targets
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, value in other.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    whole, task = make()
    run(whole, task, 12)
    module, task = make()

    class Stop(Exception):
        pass

    def failing(model: Model, batch: Batch) -> Tensor:
        if task.streams["train"].index > 7:  # type: ignore[attr-defined]
            raise Stop
        return logistic(model, batch)

    broken = Task(streams=task.streams, objectives={"task": failing})
    with pytest.raises(Stop):
        run(module, broken, 12, Checkpoints(tmp_path))
    again, task = make()
    run(again, task, 12, Checkpoints(tmp_path))
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_every_parameter_has_one_role() -> None:
    module, _ = make()
    roles = {"first": ("0.*", "1.*"), "last": ("3.*",)}
    trainee = Whole(module, stage(first=1e-3, last=1e-2), roles=roles)
    assert [len(group.parameters) for group in trainee.groups] == [3, 2]
    with pytest.raises(UnknownNameError, match=r"'1.weight'"):
        Whole(module, stage(first=1e-3), roles={"first": ("0.*", "3.*")})
    with pytest.raises(UnknownNameError, match=r"'4.\*'"):
        Whole(module, stage(first=1e-3), roles={"first": ("4.*",)})


def test_a_role_without_a_rate_is_frozen() -> None:
    module, task = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    roles = {"first": ("0.*", "1.*"), "last": ("3.*",)}
    fit(Whole(module, stage(last=1e-2), roles=roles), task, TrainConfig(steps=3))
    assert torch.equal(module.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(module.state_dict()["3.weight"], before["3.weight"])


def test_evaluations_need_an_evaluator() -> None:
    module, task = make()
    with pytest.raises(ConfigError, match="eval_every: the task has no evaluator"):
        fit(Whole(module, stage(values=1e-2)), task, TrainConfig(steps=3, eval_every=1))
    with pytest.raises(ConfigError, match="has no evaluator"):
        task.evaluate(lambda batch: None, "train")
