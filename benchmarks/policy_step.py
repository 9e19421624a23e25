"""What does an update of UWAC cost, and what do batched passes with masks of their own save?

Rivals of the target's uncertainty (mean and variance of two critics over T passes for K actions in
each state): "loop", T forward passes of each critic by itself with `dropout` of torch, as the
authors' code does it; "repeat", one pass of each critic over inputs repeated T times; "batched",
ours: both critics in one product, the first layer once for all copies, masks from random words.

    python benchmarks/policy_step.py [--rounds 7] [--hidden 64] [--batch 64] [--copies 8] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.domains.control import (
    ActorCritic,
    ActorCriticConfig,
    CriticConfig,
    ReplayStream,
    bear,
    candidate_moments,
    from_log,
    masks_of,
)
from graftwork.models import PolicyConfig
from graftwork.tasks import Task
from graftwork.training import TrainConfig, Whole, fit
from graftwork.tuning import Stage

OBSERVATIONS, ACTIONS = 39, 28
PARTS = ("_target", "_critic_losses", "_behaviour_losses", "_actor_losses", "_backward", "_step")


class Plain(nn.Module):
    """One critic as everybody writes it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        sizes = (OBSERVATIONS + ACTIONS, hidden, hidden)
        self.hidden = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.last = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = functional.dropout(torch.relu(layer(x)), 0.1, training=True)
        return self.last(x)[..., 0]


def rivals(words: argparse.Namespace, candidates: int) -> dict[str, Callable[[], object]]:
    config = CriticConfig(
        observations=OBSERVATIONS, actions=ACTIONS, hidden=(words.hidden, words.hidden)
    )
    ours = config.build(seed=0)
    plain = [Plain(words.hidden) for _ in range(2)]
    states = torch.randn(words.batch, OBSERVATIONS)
    actions = torch.randn(words.batch, candidates, ACTIONS)
    x = torch.cat([states.repeat_interleave(candidates, 0), actions.flatten(0, 1)], dim=1)
    generator = torch.Generator().manual_seed(0)

    def loop() -> object:
        passes = [torch.stack([c(x) for _ in range(words.copies)]) for c in plain]
        return [(p.mean(0), p.var(0)) for p in passes]

    def repeat() -> object:
        many = x.repeat(words.copies, 1)
        passes = [c(many).view(words.copies, -1) for c in plain]
        return [(p.mean(0), p.var(0)) for p in passes]

    def batched() -> object:
        masks = masks_of(config, words.copies, (len(x),), generator)
        return candidate_moments(ours, states, actions, masks)

    return {"loop": loop, "repeat": repeat, "batched": batched}


def timed(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each; they take turns, so that noise hurts all alike."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    with torch.no_grad():
        for _ in range(rounds):
            for name, function in functions.items():
                function()
                began = time.perf_counter()
                for _ in range(5):
                    function()
                taken[name].append((time.perf_counter() - began) / 5)
    return {name: 1e3 * statistics.median(values) for name, values in taken.items()}


@contextmanager
def watched(spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of the step's parts; `_backward` holds the four before it."""
    originals = {name: getattr(ActorCritic, name) for name in PARTS}

    def watch(name: str) -> Callable[..., object]:
        def call(self: ActorCritic, *arguments: object) -> object:
            began = time.perf_counter()
            out = originals[name](self, *arguments)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
            return out

        return call

    for name in PARTS:
        setattr(ActorCritic, name, watch(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(ActorCritic, name, original)


def updates(words: argparse.Namespace, config: ActorCriticConfig, count: int) -> dict[str, float]:
    """Return milliseconds of an update, and of its parts."""
    generator = torch.Generator().manual_seed(0)
    log = {
        "observations": torch.randn(2000, OBSERVATIONS, generator=generator).numpy(),
        "actions": torch.rand(2000, ACTIONS, generator=generator).numpy(),
        "rewards": torch.randn(2000, generator=generator).numpy(),
    }
    stream = ReplayStream(data=from_log(log, horizon=200), batch_size=words.batch)
    shape = PolicyConfig(observations=OBSERVATIONS, actions=ACTIONS, width=words.hidden)
    stage = Stage("train", 1.0, {"values": 1e-4}, clip=None)
    whole = Whole(shape.build(), stage, lambda module, batch: module(batch.inputs["x"]))
    task, step = Task(streams={"train": stream}), config.build()
    fit(whole, task, TrainConfig(steps=10, save_every=0), step=step)
    spent: dict[str, float] = {}
    with watched(spent):
        began = time.perf_counter()
        fit(whole, task, TrainConfig(steps=count, save_every=0), step=step)
        spent["update"] = time.perf_counter() - began
    parts = {name: 1e3 * seconds / count for name, seconds in spent.items()}
    inside = sum(parts[name] for name in PARTS[:4])
    return {
        "update": parts["update"],
        "target": parts["_target"],
        "critics forward": parts["_critic_losses"],
        "behaviour forward": parts["_behaviour_losses"],
        "actor forward": parts["_actor_losses"],
        "backward and policy forward": parts["_backward"] - inside,
        "optimisers and averages": parts["_step"],
        "stream, norms, driver": parts["update"] - parts["_backward"] - parts["_step"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("rounds", 7), ("hidden", 64), ("batch", 64), ("copies", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    config = ActorCriticConfig(
        critics=CriticConfig(
            observations=OBSERVATIONS,
            actions=ACTIONS,
            hidden=(words.hidden, words.hidden),
            spectral=True,
        ),
        copies=words.copies,
        candidates=words.candidates,
        behaviour_hidden=words.hidden,
        warmup=0,
    )
    found = {
        "sizes": {k: v for k, v in vars(words).items() if k != "json"},
        "uncertainty, ms": timed(rivals(words, words.candidates), words.rounds),
        "uwac, ms": updates(words, config, words.updates),
        "bear, ms": updates(words, bear(config), words.updates),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    if words.json:
        print(json.dumps(found, indent=1))
        return
    for name in ("uncertainty, ms", "uwac, ms", "bear, ms"):
        print(name)
        for key, value in found[name].items():
            print(f"  {key:<28} {value:8.2f}")


if __name__ == "__main__":
    main()
