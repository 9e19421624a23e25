"""What the driver gives a step: one stage of one run, seen from the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from graftwork._batch import Batch
from graftwork._errors import TrainingError, UnknownNameError
from graftwork.objectives import Model, Objective
from graftwork.tasks import Task
from graftwork.training._distributed import World
from graftwork.training._seeds import derive, seed_generators
from graftwork.training._trainee import Trainee
from graftwork.tuning import Group, Stage

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What stays the same over all stages of a run.

    Attributes:
        seed: root of every random draw.
        accumulate: batches an update draws.
        precision: "bf16" runs forward passes under autocast; values stay in their own type.
        dropout: whether the base's and the head's dropout are on.
        eval_batch_size: rows in a batch of evaluation.
        device: where the base is.
        world: the processes of the run.
    """

    seed: int = 0
    accumulate: int = 1
    precision: Precision = "fp32"
    dropout: bool = True
    eval_batch_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    world: World = field(default_factory=World)


class RunContext:
    """A `graftwork.steps.Context` over a trainee and a task.

    Arguments:
        trainee: the values in training.
        task: streams, objectives and evaluator.
        stage: the present stage, with its learning rates.
        place: number of the stage, updates done in it, updates that it will have.
        settings: the same for all stages.
        before: updates done in earlier stages.
    """

    def __init__(
        self,
        trainee: Trainee,
        task: Task,
        stage: Stage,
        place: tuple[int, int, int],
        settings: Settings,
        before: int = 0,
    ) -> None:
        self.trainee, self.task, self.stage = trainee, task, stage
        self.number, self.index, self.steps = place
        self.settings, self.before = settings, before
        self.accumulate = settings.accumulate
        self.objectives: Mapping[str, Objective] = _of_stage(task, stage)

    @property
    def model(self) -> Model:
        """What objectives get: the trainee, called on a batch."""
        return self.trainee

    @property
    def groups(self) -> Sequence[Group]:
        """Trainable values by role."""
        return self.trainee.groups

    @property
    def where(self) -> str:
        """Stage and step of the run, counted from 1 as checkpoints and metrics do."""
        return f"stage {self.stage.name!r}, step {self.before + self.index + 1}"

    def draw(self, stream: str = "train") -> Batch:
        """Draw the next batch of a stream (this process's rows of it)."""
        if stream not in self.task.streams:
            raise UnknownNameError("stream", stream, self.task.streams)
        batch: Batch = self.task.streams[stream].draw()
        return batch.to(self.settings.device)

    def losses(self, objective: Objective, batch: Batch) -> Tensor:
        """Return losses per row `(B,)` with a graph, under the run's autocast."""
        with autocast(self.settings.device, self.settings.precision):
            losses = objective(self.trainee, batch)
        finite = torch.isfinite(losses.detach())
        if not bool(finite.all()):
            rows = batch.rows.to(finite.device)[~finite].tolist()
            raise TrainingError(
                f"{self.where}: the loss of row(s) {_some(rows)} of the data is NaN or infinite; "
                "look at these rows, or lower the learning rates in a run of another folder"
            )
        if losses.numel() and not losses.requires_grad:
            raise TrainingError(
                f"{self.where}: the loss does not depend on any trainable value; give the stage a "
                "learning rate, or targets that the base uses"
            )
        return losses

    def prepare(self) -> None:
        """Seed this update, draw gates, write the working weights."""
        self._prepare_trainee()
        place = (self.number, self.index, self.settings.world.rank)
        seed_generators(derive(self.settings.seed, "update", *place), self.settings.device)

    def _prepare_trainee(self) -> None:
        seed = derive(self.settings.seed, "gates", self.number, self.index)
        self.trainee.prepare(self.index / self.steps, seed=seed)

    def collect(self) -> None:
        """Fill `.grad` of every trainable value from the working gradients.

        Gradients that are only watched (scores) are shown as their mean over all processes, so that
        the state is the same in each; others are reduced by the step, over what is trained instead
        of over all weights.
        """
        world = self.settings.world
        if world.size > 1:
            modules = self.trainee.watched
            watched = [p.grad for m in modules for p in m.parameters() if p.grad is not None]
            world.reduce(watched)
            if watched:
                torch._foreach_div_(watched, float(world.size))
        self.trainee.collect()

    def grad(self, objective: Objective, batch: Batch, *, eval_mode: bool = False) -> list[Tensor]:
        """Return the gradient of the mean loss for each trainable value, `.grad` untouched.

        Call it between `prepare` and the first backward pass of the update: `collect` ends what
        `prepare` began, so the same draw is prepared again afterwards. Nothing is reduced over
        processes, and what only watches gradients does not see this one.
        """
        values = [p for group in self.groups for p in group.parameters]
        with self._aside(), self._evaluating() if eval_mode else nullcontext():
            self.losses(objective, batch).mean().backward()
            if not self.trainee.watched:
                self.trainee.collect()
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in values]
        self._prepare_trainee()
        return gradients

    def measure(self, stream: str = "eval") -> dict[str, float]:
        """Evaluate the values as they would be extracted now; process 0 does, all get the result.

        Returns:
            Metric name -> value.
        """
        metrics: dict[str, float] = {}
        if self.settings.world.leads:
            with self.trainee.settled(), self._evaluating():
                metrics = evaluate(self.trainee, self.task, stream, self.settings)
        return self.settings.world.agree(metrics)

    def reduce(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over all processes, in place."""
        self.settings.world.reduce(tensors)

    def fork(self) -> object:
        """Remember all trainable values."""
        return [p.detach().clone() for group in self.groups for p in group.parameters]

    def restore(self, fork: object) -> None:
        """Return to remembered values."""
        assert isinstance(fork, list)
        values = [p for group in self.groups for p in group.parameters]
        with torch.no_grad():
            for value, kept in zip(values, fork, strict=True):
                value.copy_(kept)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        for module in self.trainee.modules:
            module.eval()
        try:
            yield
        finally:
            for module in self.trainee.modules:
                module.train(self.settings.dropout)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Put every `.grad` aside, and back at the end."""
        held = {p: None for group in self.groups for p in group.parameters}
        held |= {p: None for module in self.trainee.modules for p in module.parameters()}
        kept = {p: p.grad for p in held}
        for p in held:
            p.grad = None
        try:
            yield
        finally:
            for p, gradient in kept.items():
                p.grad = gradient


def evaluate(model: Model, task: Task, stream: str, settings: Settings) -> dict[str, float]:
    """Return the metrics of `model` over all rows of a stream; the caller sets it to eval mode.

    Raises:
        UnknownNameError: the task has no such stream.
    """

    def run(batch: Batch) -> Any:
        with autocast(settings.device, settings.precision):
            return model(batch.to(settings.device))

    return task.evaluate(run, stream, settings.eval_batch_size)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context of a forward pass."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _of_stage(task: Task, stage: Stage) -> dict[str, Objective]:
    """Return the objectives that a stage minimises.

    Raises:
        UnknownNameError: the stage names one that the task has not.
    """
    for name in stage.objectives:
        if name not in task.objectives:
            raise UnknownNameError("objective", name, task.objectives)
    return {name: task.objectives[name] for name in stage.objectives or task.objectives}


def _some(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
