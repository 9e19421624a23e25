"""The driver: takes a step over a task's streams, stage by stage, and can stop and go on anywhere.

A run is the list of a tuner's stages. After each update the whole state is a function of (base,
task, seed, what was learnt so far): every update seeds itself from its place, so a checkpoint holds
tensors and counters, and a resumed run gives the same bytes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import ConfigError, FingerprintError, TrainingError, did_you_mean
from graftwork.steps import PlainSum, Step
from graftwork.tasks import Task
from graftwork.training._checkpoint import Checkpoint, Checkpoints, cloned
from graftwork.training._context import RunContext, Settings
from graftwork.training._distributed import current_world
from graftwork.training._interrupt import Flag, RunInterrupted, interruptible
from graftwork.training._recorder import Recorder, Silent
from graftwork.training._streams import load_streams, rebatch, share_out, stream_tensors
from graftwork.training._train_config import TrainConfig, stage_steps
from graftwork.training._trainee import Trainee, part
from graftwork.tuning import Role, Stage, TuningWarning


@dataclass
class Place:
    """Where a run is, and what early stopping knows; saved in each checkpoint.

    Attributes:
        stage: number of the stage.
        index: updates done in it.
        step: updates done in the run.
        best: metrics of the best evaluation of the last stage.
        best_step: updates that had been done then.
        stale: evaluations since.
        stopped: True once early stopping ended the run.
        notes: what the tuner warned of.
    """

    stage: int = 0
    index: int = 0
    step: int = 0
    best: dict[str, float] | None = None
    best_step: int = 0
    stale: int = 0
    stopped: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a training did.

    Attributes:
        steps: updates done.
        stopped_early: whether patience ended it.
        best: metrics of the best evaluation, where there were any.
        best_step: updates that had been done at the best evaluation.
        notes: what the tuner warned of.
    """

    steps: int
    stopped_early: bool = False
    best: Mapping[str, float] | None = None
    best_step: int = 0
    notes: tuple[str, ...] = ()


def fit(
    trainee: Trainee,
    task: Task,
    config: TrainConfig,
    *,
    step: Step | None = None,
    recorder: Recorder | None = None,
    checkpoints: Checkpoints | None = None,
) -> Fitted:
    """Train `trainee` on `task` through all its stages.

    The caller's random generators are as before afterwards. With several processes (torchrun)
    every process calls it alike; process 0 shows progress and writes.

    Arguments:
        trainee: an adaptation from `start`, or a `Whole` module; trained in place.
        task: streams "train" and, for evaluations, "eval".
        config: budget, precision, evaluation.
        step: how losses become updates; `PlainSum()` when None.
        recorder: is told what happens.
        checkpoints: where to save and to go on from; None saves nothing, and Ctrl-C then stops at
            once.

    Raises:
        TrainingError: a loss, gradient or value is NaN or infinite; names step and rows.
        StorageError: a checkpoint could not be written; older ones are kept.
        RunInterrupted: Ctrl-C; a checkpoint was saved.

    Example:
        >>> fit(start(base, task, tuner), task, TrainConfig(steps=200))  # doctest: +SKIP
    """
    device = trainee.device
    driver = _Driver(trainee, task, config, step or PlainSum())
    driver.recorder = recorder if recorder and driver.settings.world.leads else Silent()
    driver.checkpoints = checkpoints
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            return driver.run()
        except TrainingError as error:
            if checkpoints is None:
                raise
            raise TrainingError(f"{error}; {checkpoints.last_words()}") from error


@dataclass
class _Driver:
    trainee: Trainee
    task: Task
    config: TrainConfig
    step: Step
    recorder: Recorder = field(default_factory=Silent)
    checkpoints: Checkpoints | None = None
    place: Place = field(default_factory=Place)
    best: dict[str, Tensor] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        config = self.config
        self.settings = Settings(
            seed=self.trainee.seed,
            accumulate=config.accumulate,
            precision=config.precision,
            dropout=config.dropout,
            eval_batch_size=config.eval_batch_size,
            device=self.trainee.device,
            world=current_world(),
        )
        share_out(self.task, self.settings.world)
        if config.batch_size is not None:
            rebatch(self.task.streams["train"], config.batch_size)
        self.batch_size: int | None = getattr(self.task.streams["train"], "batch_size", None)
        self.stages = [_with_rates(s, config) for s in self.trainee.stages]
        _check_evaluations(config, self.task)
        _check_stages(config, self.stages, [group.role for group in self.trainee.groups])
        self.budget = stage_steps(config, self.stages, self.task.streams["train"])

    def run(self) -> Fitted:
        checkpoint = self._resume()
        if self.checkpoints is None:
            self._stages(checkpoint, Flag())
        else:
            with interruptible() as flag:
                self._stages(checkpoint, flag)
            if self.config.save_every and self.place.step % self.config.save_every:
                self._save(self.checkpoints)
        if self.config.keep_best and self.best:
            self.trainee.load_tensors(self.best)
        place = self.place
        return Fitted(place.step, place.stopped, place.best, place.best_step, tuple(place.notes))

    def _stages(self, checkpoint: Checkpoint | None, flag: Flag) -> None:
        while True:
            self._stage(checkpoint, flag)
            checkpoint = None
            if self.place.stage + 1 == len(self.stages):
                return
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", TuningWarning)
                self._advance()
            self._pass_on([str(w.message) for w in caught])

    def _pass_on(self, complaints: list[str]) -> None:
        """Show what the tuner warns of: in the run's notes, or as warnings where it has none."""
        for text in complaints:
            self.place.notes.append(text)
            self._record({"note": f"warning: {text}"})
            if isinstance(self.recorder, Silent):
                warnings.warn(text, TuningWarning, stacklevel=2)

    def _advance(self) -> None:
        if not self.trainee.advance():
            raise TrainingError(
                f"training ended after {self.place.stage + 1} of {len(self.stages)} stages"
            )
        self.place.stage, self.place.index = self.place.stage + 1, 0

    def _stage(self, checkpoint: Checkpoint | None, flag: Flag) -> None:
        place, config = self.place, self.config
        stage, steps = self.stages[place.stage], self.budget[place.stage]
        if batch_size := stage.batch_size or self.batch_size:
            rebatch(self.task.streams["train"], batch_size)
        self.trainee.train(stage.learning_rates, dropout=config.dropout)
        where = (place.stage, place.index, steps)
        before = place.step - place.index
        context = RunContext(self.trainee, self.task, stage, where, self.settings, before)
        self.step.begin(context)
        if checkpoint is not None:
            self.step.load_tensors(part(checkpoint.tensors, "step/"))
            load_streams(self.task, checkpoint.tensors)
        self.recorder.stage(stage.name, place.index, steps)
        while place.index < steps and not place.stopped:
            context.index = place.index
            scalars = self.step.update(context)
            place.index, place.step = place.index + 1, place.step + 1
            self._after(context, scalars, flag)

    def _after(self, context: RunContext, scalars: Mapping[str, float], flag: Flag) -> None:
        config, place = self.config, self.place
        self.recorder.tick(scalars["loss"])
        if place.step % config.log_every == 0:
            self._record({**scalars, **self.trainee.report()})
        last = place.stage + 1 == len(self.stages) and place.index == context.steps
        if config.eval_every and (place.step % config.eval_every == 0 or last):
            self._evaluate(context)
        if self.checkpoints is None:
            return
        stop = self.settings.world.any(flag.raised)
        if stop or (config.save_every and place.step % config.save_every == 0):
            self._save(self.checkpoints)
        if stop:
            raise RunInterrupted(
                f"stopped after step {place.step} in stage {context.stage.name!r}; "
                f"{self.checkpoints.last_words()}"
            )

    def _evaluate(self, context: RunContext) -> None:
        place, config, evaluator = self.place, self.config, self.task.evaluator
        assert evaluator is not None  # checked at the start
        metrics = context.measure()
        self._record({f"eval/{name}": value for name, value in metrics.items()})
        if place.stage + 1 < len(self.stages):
            return
        if evaluator.better(metrics, place.best):
            place.best, place.best_step, place.stale = metrics, place.step, 0
            if config.keep_best:
                self.best = cloned(self.trainee.tensors())
        else:
            place.stale += 1
            place.stopped = 0 < config.patience <= place.stale

    def _record(self, numbers: Mapping[str, Any]) -> None:
        place, seconds = self.place, round(time.perf_counter() - self.began, 3)
        stage = self.stages[place.stage].name
        self.recorder.record({"step": place.step, "stage": stage, "seconds": seconds, **numbers})

    def _save(self, checkpoints: Checkpoints) -> None:
        self.trainee.check_finite()
        world = self.settings.world
        if world.leads:
            tensors = {
                **self.trainee.tensors(),
                **{f"step/{name}": t for name, t in self.step.tensors().items()},
                **{f"best/{name}": t for name, t in self.best.items()},
                **stream_tensors(self.task),
            }
            record = {"place": asdict(self.place), "base": self.trainee.origin}
            checkpoints.save(self.place.step, tensors, record)
        world.wait()

    def _resume(self) -> Checkpoint | None:
        checkpoint = self.checkpoints.newest() if self.checkpoints is not None else None
        if checkpoint is None:
            return None
        if checkpoint.record["base"] != self.trainee.origin:
            raise FingerprintError(
                "the base changed since the checkpoint, or the shapes of what is trained; restore "
                "it, or start in another folder"
            )
        saved = Place(**checkpoint.record["place"])
        # attachments advance without training too: what they then hold is loaded over
        for _ in range(saved.stage):
            self._advance()
        self.trainee.load_tensors(checkpoint.tensors)
        self.best = part(checkpoint.tensors, "best/")
        self.place = saved
        return checkpoint


def _with_rates(stage: Stage, config: TrainConfig) -> Stage:
    rates = {**stage.learning_rates, **config.learning_rates.get(stage.name, {})}
    return replace(stage, learning_rates=rates)


def _check_evaluations(config: TrainConfig, task: Task) -> None:
    if config.patience and not config.eval_every:
        raise ConfigError("patience needs evaluations: set eval_every")
    if config.eval_every and task.evaluator is None:
        raise ConfigError("eval_every: the task has no evaluator; give it one, or set it to 0")


def _check_stages(config: TrainConfig, stages: list[Stage], trained: list[Role]) -> None:
    names = [stage.name for stage in stages]
    roles = {*trained, *(role for stage in stages for role in stage.decay)}
    for name, rates in config.learning_rates.items():
        if name not in names:
            raise ConfigError(f"learning_rates: no stage {name!r}{did_you_mean(name, names)}")
        for role in rates:
            if role not in roles:
                where = f"learning_rates.{name}: no role {role!r}"
                raise ConfigError(f"{where}{did_you_mean(role, roles)}")
    if not math.isclose(sum(stage.share for stage in stages), 1.0, abs_tol=1e-6):
        raise ConfigError(f"the shares of the stages {names} do not sum to 1")
