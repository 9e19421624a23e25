"""UWAC (Wu et al., 2021): weights of uncertainty keep an offline critic from running away.

Policies are learnt from 25 human demonstrations of the Adroit door task (Rajeswaran et al., 2018),
the source of D4RL's door-human. BEAR and UWAC get the same networks, batches, rates and updates;
UWAC adds dropout to the critics, weights from its variance, and spectral normalisation. The
ablations take one of the three away. The largest return that rewards allow is
`r_max / (1 - gamma) = 2,000`. Returns in the environment are no part of the claim: at this budget
no method opens the door.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from graftwork.claims._claim import Claim, DataFile, Progress, Scale
from graftwork.claims._control import deviations, made_log, mode_matters
from graftwork.claims._rules import AtMost, Beats, Equals, Row
from graftwork.domains.control import (
    ActorCritic,
    ActorCriticConfig,
    CriticConfig,
    OfflineDataset,
    ReplayStream,
    bear,
    read_log,
    separation,
    uncertainty,
)
from graftwork.models import PolicyConfig
from graftwork.tasks import Task
from graftwork.training import History, TrainConfig, Whole, derive, fit
from graftwork.tuning import Stage

DOOR = DataFile(
    "uwac/door_human_demos.npz",
    "4d5e35229a479220c084a4716bf2d10ffda23c3ec2f29dc30a6e9b2cde1e25c5",
    "github.com/aravindr93/hand_dapg, dapg/demonstrations/door-v0_demos.pickle at commit "
    "9a1de23df657, as npz of float32 (docs/uwac.md says how)",
)
SETTING = "door"
LAST = 50
"""Updates whose mean is a method's final figure."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """One scale of the experiment."""

    door: bool = True
    """Whether the log is that of the door; False takes a small made one."""
    steps: int = 2400
    """Updates of every method."""
    warmup: int = 400
    """Of these, updates in which the policy only matches the behaviour."""
    hidden: int = 64
    """Units of every hidden layer."""
    batch_size: int = 64
    """Rows of a batch."""
    copies: int = 8
    """Stochastic passes."""
    candidates: int = 4
    """Actions tried in a next state."""
    rows: int = 500
    """Logged states at which logged and random actions are told apart."""
    device: str = "cpu"
    """Where it runs."""


SCALES: Mapping[Scale, Sizes] = {
    "smoke": Sizes(door=False, steps=60, warmup=10, hidden=8, batch_size=8, rows=50),
    "quick": Sizes(),
    "full": Sizes(
        steps=100_000,
        warmup=40_000,
        hidden=256,
        batch_size=256,
        copies=100,
        candidates=10,
        rows=5000,
        device="cuda",
    ),
}
"""What is run at each scale; only `quick` is judged."""


def methods(sizes: Sizes) -> dict[str, ActorCriticConfig]:
    """Return the settings of every method by name, sizes of the data and seeds left out."""
    whole = ActorCriticConfig(
        critics=CriticConfig(hidden=(sizes.hidden, sizes.hidden), spectral=True),
        copies=sizes.copies,
        candidates=sizes.candidates,
        warmup=sizes.warmup,
        behaviour_hidden=sizes.hidden,
    )
    plain = replace(whole.critics, spectral=False)
    certain = replace(whole.critics, dropout=0.0)
    return {
        "uwac": whole,
        "no spectral norm": replace(whole, critics=plain),
        "no weights": replace(whole, weighting="none"),
        "no dropout": replace(whole, critics=certain, copies=1, weighting="none"),
        "bear": bear(whole),
    }


def learn(
    config: ActorCriticConfig, sizes: Sizes, data: OfflineDataset, seed: int
) -> tuple[ActorCritic, History]:
    """Return the trained step and the record of every update."""
    observations, actions = data.observations.shape[1], data.actions.shape[1]
    critics = replace(config.critics, observations=observations, actions=actions)
    step = replace(config, critics=critics, seed=seed).build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "policy"))
        policy = PolicyConfig(
            observations=observations, actions=actions, width=sizes.hidden
        ).build()
    stage = Stage("train", 1.0, {"values": 1e-4}, clip=None)
    whole = Whole(
        policy.to(sizes.device), stage, lambda module, batch: module(batch.inputs["x"]), seed=seed
    )
    stream = ReplayStream(data=data, batch_size=sizes.batch_size, seed=seed)
    history = History()
    train = TrainConfig(steps=sizes.steps, save_every=0, log_every=1)
    fit(whole, Task(streams={"train": stream}), train, step=step, recorder=history)
    return step, history


def told_apart(step: ActorCritic, data: OfflineDataset, rows: int, seed: int) -> dict[str, float]:
    """Return how the variance tells uniform random actions from logged ones, in logged states.

    Returns:
        "AUROC" of the variance (1/2 without dropout, where all are 0), which the claim is about;
        "AUROC relative" of the variance over the square of the mean, and "Q logged" and "Q
        random", means of Q, which say how far the variance only follows the size of Q.
    """
    generator = torch.Generator().manual_seed(derive(seed, "random actions"))
    chosen = torch.randperm(len(data), generator=generator)[:rows]
    device = step.log_multiplier.device
    states = torch.from_numpy(data.observations)[chosen].to(device)
    logged = torch.from_numpy(data.actions)[chosen].to(device)
    random = 2.0 * torch.rand(logged.shape, generator=generator).to(device) - 1.0
    (low, low_var), (high, high_var) = (
        uncertainty(step.critics, states, actions, seed=seed) for actions in (logged, random)
    )
    return {
        "AUROC": separation(low_var, high_var),
        "AUROC relative": separation(low_var / low.square(), high_var / high.square()),
        "Q logged": low.mean().item(),
        "Q random": high.mean().item(),
    }


def run(scale: Scale, seed: int, data: Path | None, progress: Progress) -> list[Row]:
    """Measure one seed."""
    sizes = SCALES[scale]
    rows = [
        Row("formulas", "loop", metric, seed, value) for metric, value in deviations(seed).items()
    ]
    rows.append(Row("formulas", "dropout", "mode matters", seed, mode_matters(seed)))
    log = read_log(DOOR.find(data)) if sizes.door else made_log(seed)
    for name, config in methods(sizes).items():
        step, history = learn(config, sizes, log, seed)
        last = final(history)
        last |= told_apart(step, log, sizes.rows, seed)
        last["log10 target Q"] = math.log10(max(last["target Q"], 1.0))
        rows += [Row(SETTING, name, metric, seed, value) for metric, value in last.items()]
        if config.weighting != "none":
            rows.append(Row(SETTING, name, "bounded Q", seed, last["target Q"]))
        progress(
            f"seed {seed}, {name}: target Q {last['target Q']:.3g}, weight {last['weight']:.2f}, "
            f"MMD {last['MMD']:.2f}, AUROC {last['AUROC']:.2f}"
        )
    rows.append(Row(SETTING, "chance", "AUROC", seed, 0.5))
    return rows


def curve(history: History, every: int = 100) -> list[dict[str, float]]:
    """Return means over `every` updates of what a history holds, for drawing."""
    records = [r for r in history.records if "target_q" in r]
    keys = ("target_q", "weight", "variance", "mmd", "multiplier")
    out = []
    for first in range(0, len(records), every):
        part = records[first : first + every]
        means = {key: math.fsum(r[key] for r in part) / len(part) for key in keys}
        out.append({"step": float(part[-1]["step"]), **means})
    return out


def final(history: History) -> dict[str, float]:
    """Return means over the last updates of a history."""
    records = [r for r in history.records if "target_q" in r][-LAST:]
    shown = {"target Q": "target_q", "weight": "weight", "MMD": "mmd", "variance": "variance"}
    return {
        name: math.fsum(record[key] for record in records) / len(records)
        for name, key in shown.items()
    }


_EXACT = {
    "variance off": "Mean and variance over the passes are those of the textbook.",
    "weights off": "Both forms of the weights, clipping included, are those of a loop.",
    "target off": "The Bellman target and its variance are those of a loop over candidates.",
    "losses off": "Losses of critics (both squarings) and actor are those of a loop.",
    "mmd off": "The discrepancy, Gaussian and Laplacian, is that of a loop over pairs.",
}

CLAIM = Claim(
    name="uwac",
    system="UWAC",
    sentence="On narrow human demonstrations the Q values of BEAR run away, while weights of the "
    "critic's dropout variance and spectral normalisation keep those of UWAC bounded.",
    rules=(
        *(
            AtMost(name.replace(" ", "-"), sentence, name, 1e-12)
            for name, sentence in _EXACT.items()
        ),
        Equals(
            "dropout-stays-on",
            "Evaluation mode leaves the critics' variance as it is.",
            "mode matters",
            0.0,
        ),
        AtMost(
            "bounded",
            "With weights, the final mean target is at most 100 for every seed, with and without "
            "spectral normalisation.",
            "bounded Q",
            100.0,
            kind="difference",
        ),
        Beats(
            "bear-runs-away",
            "BEAR's final mean target is 10 times that of UWAC or more (1 in log10).",
            SETTING,
            "bear",
            "uwac",
            1.0,
            metric="log10 target Q",
        ),
        Beats(
            "knows-random-actions",
            "The variance tells logged from uniform random actions with an AUROC of 0.8 or more "
            "(0.3 over chance).",
            SETTING,
            "uwac",
            "chance",
            0.3,
            metric="AUROC",
        ),
    ),
    run=run,
)
