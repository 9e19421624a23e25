"""The recipe: a log in, a policy out, as a new base or as a delta of one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graftwork.bases import load as load_base
from graftwork.bases import save as save_base
from graftwork.deltas import view
from graftwork.domains.control._acting import actor
from graftwork.domains.control._critics import Critics
from graftwork.domains.control._data import OfflineDataset
from graftwork.domains.control._environment import (
    SCORES,
    make_environment,
    normalised,
    rollout,
)
from graftwork.domains.control._inspect import Imitation, OffPolicy
from graftwork.domains.control._losses import cloning
from graftwork.domains.control._outcome import PolicyOutcome
from graftwork.domains.control._readers import read_log, read_minari
from graftwork.domains.control._stream import ReplayStream
from graftwork.domains.control._uwac import ActorCritic, ActorCriticConfig, bear
from graftwork.errors import ConfigError
from graftwork.models import PolicyConfig
from graftwork.steps import PlainSum, PlainSumConfig, Step
from graftwork.tasks import ArrayInput, Batch, Scorer, Signature, Task
from graftwork.training import (
    Adaptation,
    BaseOutcome,
    Conclusion,
    DeltaOutcome,
    Fitted,
    LogConfig,
    Prepared,
    RunResult,
    TrainConfig,
    Whole,
    current_world,
    derive,
    finish,
    run,
    start,
)
from graftwork.tuning import RandomMask, Stage, StoredType, Tuner

Method = Literal["uwac", "bear", "bc"]


@dataclass(frozen=True, kw_only=True)
class PolicyRun:
    """Everything that the training of a policy depends on.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> config = PolicyRun(data="door_human_demos.npz", train=TrainConfig(steps=3000))
        >>> config.method
        'uwac'
    """

    data: str
    """A file that `read_log` reads, or "minari:NAME" for a data set of Minari on this machine."""
    horizon: int | None = None
    """Steps after which episodes were cut, for old files without "timeouts"."""
    method: Method = "uwac"
    """"uwac", "bear" (the same without dropout, normalisation and weights) or "bc" (cloning)."""
    step: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    """Settings of the step; sizes come from the data, its seed from the run's."""
    width: int = 256
    """Units of the policy's hidden layers; a new base only."""
    layers: int = 2
    """Hidden layers of the policy; a new base only."""
    policy_lr: float = 1e-4
    """Adam's rate of the policy (1e-5 to 1e-4 by task); a new base only."""
    batch_size: int = 256
    """Rows of a batch."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=100_000))
    """Budget, evaluation, saving."""
    base: str | None = None
    """Folder of a policy to adapt; the run then yields a delta of it, learnt by `tuner`."""
    tuner: Tuner = field(default_factory=RandomMask)
    """What parametrises the delta; only with `base`."""
    stored: StoredType = "float16"
    """Type of the delta's stored values; only with `base`."""
    environment: str | None = None
    """Gymnasium environment in which the finished policy is measured; None: on the log alone."""
    episodes: int = 10
    """Episodes of that measurement; episode i is reset with seed i."""
    seed: int = 0
    """Root of every random draw."""
    device: str = "auto"
    """"cpu", "cuda", ...; "auto" takes a GPU where there is one."""
    out: str = "runs/policy"
    """The run's folder."""
    log: LogConfig = field(default_factory=LogConfig)
    """Progress and TensorBoard."""

    def __post_init__(self) -> None:
        if self.method not in ("uwac", "bear", "bc"):
            raise ConfigError(f"method: 'uwac', 'bear' or 'bc', not {self.method!r}")
        critics = self.step.critics
        if critics.observations or critics.actions or self.step.seed:
            raise ConfigError(
                "step.critics.observations and .actions come from the data, step.seed from the "
                "run's seed: leave them as they are"
            )
        if self.train.keep_best and self.method != "bc":
            raise ConfigError(
                "train.keep_best would bring back an earlier policy beside the last critics, which "
                "choose its actions; leave it out, or stop earlier by train.patience"
            )
        if self.train.batch_size is not None:
            raise ConfigError("train.batch_size: set batch_size beside it instead")


def train_policy(
    config: PolicyRun, *, resume: bool = False, data: OfflineDataset | None = None
) -> RunResult[PolicyOutcome]:
    """Train a policy as `config` says, in the folder `config.out`: watched, saved, resumed exactly.

    Args:
        config: everything that the run depends on.
        resume: go on with the run in the folder where there is one; a finished run is returned.
        data: already read as `config` says.

    Raises:
        InputError: the data, or the base, do not fit.
        StorageError: the folder holds another run, is in use, or the disk is full.
        ConfigError: the run in the folder has another configuration.
        TrainingError: a loss became NaN; the last good checkpoint is kept.
        RunInterrupted: Ctrl-C; a checkpoint was saved.

    Example:
        >>> config = PolicyRun(data="door_human_demos.npz", environment="AdroitHandDoor-v1")
        >>> result = train_policy(config)  # doctest: +SKIP
        >>> result.metrics["return"], result.outcome.module()  # doctest: +SKIP
    """
    settings = json.loads(json.dumps({**asdict(config), "tuner": _named(config.tuner)}))
    return run(
        config.out,
        settings,
        lambda _: _prepare(config, data),
        PolicyOutcome,
        resume=resume,
        log=config.log,
    )


def policy_signature(observations: int) -> Signature:
    """Return how a policy is called: one observation in, mean and log standard deviation out."""
    return Signature(
        kind="vector",
        call="array",
        fields=("observation",),
        targets=(),
        array=ArrayInput((observations,)),
        head=None,
    )


def _named(tuner: Tuner) -> dict[str, Any]:
    return {"name": type(tuner).__name__, **asdict(tuner)}  # type: ignore[call-overload]


def _read(config: PolicyRun) -> OfflineDataset:
    if config.data.startswith("minari:"):
        return read_minari(config.data.removeprefix("minari:"))
    return read_log(config.data, horizon=config.horizon)


def _prepare(config: PolicyRun, data: OfflineDataset | None) -> Prepared[PolicyOutcome]:
    data = data or _read(config)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    step = _step(config, data)
    task = _task(config, data, step)
    if config.base is not None:
        base = load_base(config.base, device=device)
        adaptation = start(base, task, config.tuner, seed=config.seed)
        conclude = partial(_delta, config, adaptation, (task, step))
        return Prepared(
            trainee=adaptation, task=task, train=config.train, step=step, conclude=conclude
        )
    shape = PolicyConfig(
        observations=data.observations.shape[1],
        actions=data.actions.shape[1],
        width=config.width,
        layers=config.layers,
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive(config.seed, "policy"))
        policy = shape.build().to(device)
    stage = Stage("train", 1.0, {"values": config.policy_lr}, clip=None)
    whole = Whole(policy, stage, _call, seed=config.seed)
    conclude = partial(_base, config, whole, shape, (task, step))
    return Prepared(trainee=whole, task=task, train=config.train, step=step, conclude=conclude)


def _call(policy: nn.Module, batch: Batch) -> Tensor:
    outputs: Tensor = policy(batch.inputs["x"])
    return outputs


def _step(config: PolicyRun, data: OfflineDataset) -> Step:
    if config.method == "bc":
        return PlainSum(PlainSumConfig(schedule="constant"))
    settings = bear(config.step) if config.method == "bear" else config.step
    critics = replace(
        settings.critics,
        observations=data.observations.shape[1],
        actions=data.actions.shape[1],
    )
    return replace(settings, critics=critics, seed=config.seed).build()


def _task(config: PolicyRun, data: OfflineDataset, step: Step) -> Task:
    def stream(name: str) -> ReplayStream:
        return ReplayStream(data=data, batch_size=config.batch_size, seed=config.seed, name=name)

    judge: Scorer = Imitation()
    if isinstance(step, ActorCritic):
        judge = OffPolicy(step, seed=config.seed)
    return Task(
        signature=policy_signature(data.observations.shape[1]),
        streams={"train": stream("train"), "eval": stream("eval")},
        evaluator=judge,
        objectives={} if isinstance(step, ActorCritic) else {"task": cloning},
    )


def _base(
    config: PolicyRun,
    whole: Whole,
    shape: PolicyConfig,
    setting: tuple[Task, Step],
    fitted: Fitted,
) -> Conclusion[PolicyOutcome]:
    task, step = setting
    metrics: dict[str, float] = {}
    world = current_world()
    if world.leads:
        policy = whole.module.eval()
        with torch.no_grad():
            metrics = task.evaluate(whole, "eval", config.train.eval_batch_size)
        metrics |= _measured(config, policy, step)
    outcome = BaseOutcome(partial(save_base, whole.module, config=shape))
    summary = {"data": task.streams["train"].digest, "best": dict(fitted.best or {})}
    return Conclusion(
        outcome=PolicyOutcome(outcome, _critics(step)),
        metrics=world.agree(metrics),
        summary=summary,
    )


def _delta(
    config: PolicyRun,
    adaptation: Adaptation,
    setting: tuple[Task, Step],
    fitted: Fitted,
) -> Conclusion[PolicyOutcome]:
    task, step = setting
    made = {
        "base": Path(config.base or "").name,
        "method": config.method,
        "tuner": _named(config.tuner),
        "seed": config.seed,
        "steps": fitted.steps,
        "data_digests": {name: stream.digest for name, stream in task.streams.items()},
    }
    delta, metrics = finish(adaptation, task, stored=config.stored, provenance=made)
    world = current_world()
    rolled: dict[str, float] = {}
    if world.leads:
        rolled = _measured(config, view(adaptation.base, delta).eval(), step)
    return Conclusion(
        outcome=PolicyOutcome(DeltaOutcome(delta), _critics(step)),
        metrics={**metrics, **world.agree(rolled)},
        summary={"unreached": list(adaptation.unreached)},
    )


def _critics(step: Step) -> Critics | None:
    return step.critics if isinstance(step, ActorCritic) else None


def _measured(config: PolicyRun, policy: nn.Module, step: Step) -> dict[str, float]:
    """Return mean return, share of successes and D4RL's score in the environment, where named."""
    if config.environment is None:
        return {}
    environment = make_environment(config.environment)
    try:
        act = actor(policy, _critics(step), seed=config.seed)
        found = rollout(environment, act, episodes=config.episodes)
    finally:
        environment.close()
    mean = sum(found.returns) / len(found.returns)
    metrics = {"return": mean, "success": sum(found.successes) / len(found.successes)}
    if config.environment in SCORES:
        metrics["normalised"] = normalised(config.environment, mean)
    return metrics
