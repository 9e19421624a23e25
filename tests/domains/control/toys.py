"""A small log and a context that gives a policy to a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from graftwork.domains.control import (
    ActorCriticConfig,
    CriticConfig,
    OfflineDataset,
    ReplayStream,
    from_log,
)
from graftwork.models import PolicyConfig
from graftwork.objectives import Objective
from graftwork.tasks import Batch
from graftwork.tuning import Group, Stage

OBSERVATIONS, ACTIONS = 3, 2


def log(rows: int = 60, seed: int = 0) -> OfflineDataset:
    generator = np.random.default_rng(seed)
    observations = generator.normal(size=(rows, OBSERVATIONS))
    return from_log(
        {
            "observations": observations,
            "actions": np.tanh(observations[:, :ACTIONS] + 0.1 * generator.normal(size=(rows, 2))),
            "rewards": observations[:, 0],
            "terminals": np.arange(rows) % 7 == 6,
        },
        horizon=20,
    )


def critics(**more) -> CriticConfig:
    options = {"hidden": (8, 8), **more}
    return CriticConfig(observations=OBSERVATIONS, actions=ACTIONS, **options)


def config(shape: CriticConfig | None = None, **more) -> ActorCriticConfig:
    options = {"copies": 4, "candidates": 3, "matching": 3, "warmup": 2, "behaviour_hidden": 8}
    return ActorCriticConfig(critics=shape or critics(), **{**options, **more})


class Context:
    """What a step sees of a run: a whole policy and a stream of logged rows."""

    index, steps, accumulate, where = 0, 100, 1, "stage 'train', step 1"
    objectives: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, *, batch_size: int = 6, clip: float | None = None, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.policy = PolicyConfig(observations=OBSERVATIONS, actions=ACTIONS, width=8).build()
        self.stage = Stage("train", 1.0, {"values": 1e-2}, clip=clip)
        self.stream = ReplayStream(data=log(), batch_size=batch_size, seed=seed)
        self.calls: list[str] = []

    def model(self, batch: Batch) -> Tensor:
        return self.policy(batch.inputs["x"])

    @property
    def groups(self) -> Sequence[Group]:
        return [Group("values", tuple(self.policy.parameters()))]

    def draw(self, stream: str = "train") -> Batch:
        return self.stream.draw()

    def prepare(self) -> None:
        self.calls.append("prepare")

    def collect(self) -> None:
        self.calls.append("collect")

    def reduce(self, tensors: Iterable[Tensor]) -> None:
        list(tensors)

    def losses(self, objective: Objective, batch: Batch) -> Tensor:
        return objective(self.model, batch)

    def grad(self, objective: Objective, batch: Batch, *, eval_mode: bool = False) -> list[Tensor]:
        raise NotImplementedError

    def measure(self, stream: str = "eval") -> dict[str, float]:
        return {}

    def fork(self) -> object:
        return self.state()

    def restore(self, fork: object) -> None:
        raise NotImplementedError

    def state(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.policy.parameters()]


class Walk:
    """Three steps; the reward is the sum of the action."""

    def __init__(self):
        self.action_space = SimpleNamespace(
            shape=(2,), low=-np.ones(2, np.float32), high=np.ones(2, np.float32)
        )
        self.done = 0

    def reset(self, seed: int):
        self.seed, self.done = seed, 0
        return np.full(3, float(seed)), {}

    def step(self, action):
        self.done += 1
        info = {"success": self.seed == 8 and self.done == 2}
        return np.zeros(3), action.sum(), False, self.done == 3, info

    def render(self):
        return np.full((4, 6, 3), self.done, dtype=np.uint8)
