"""What a step is: how losses become one update of the trainable values.

A `Step` owns its optimisers and its state (tensors only); the driver in `training/` calls
`begin` once a stage and `update` once an optimiser step, and gives it a `Context`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from graftwork._batch import Batch
from graftwork.objectives import Model, Objective
from graftwork.tuning import Group, Stage


@runtime_checkable
class Context(Protocol):
    """What the driver gives a step."""

    index: int
    """Optimiser steps done in this stage."""
    steps: int
    """Optimiser steps that this stage will have."""
    accumulate: int
    """Batches that one update draws."""
    stage: Stage
    objectives: Mapping[str, Objective]
    """The objectives of this stage by name; "task" is the main one."""

    @property
    def where(self) -> str:
        """Stage and step of the run, for messages."""

    @property
    def model(self) -> Model:
        """What objectives get: batch -> outputs. A step with losses of its own calls it."""

    @property
    def groups(self) -> Sequence[Group]:
        """Trainable values by role: the attachment's groups and the ports ("head")."""

    def draw(self, stream: str = "train") -> Batch:
        """Draw the next batch of a stream (this process's rows of it)."""

    def losses(self, objective: Objective, batch: Batch) -> Tensor:
        """Return losses per row `(B,)` with a graph, under the run's autocast.

        Raises:
            TrainingError: a loss is NaN or infinite; names the step and the rows.
        """

    def prepare(self) -> None:
        """Begin an update: seed, draw gates once, write the working weights."""

    def collect(self) -> None:
        """After the backward passes: fill `.grad` of every trainable value."""

    def grad(self, objective: Objective, batch: Batch, *, eval_mode: bool = False) -> list[Tensor]:
        """Return the gradient of the mean loss for each trainable value, `.grad` untouched."""

    def measure(self, stream: str = "eval") -> dict[str, float]:
        """Evaluate the current values; gates are deterministic."""

    def reduce(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over all processes, in place; nothing to do with one process."""

    def fork(self) -> object:
        """Remember all trainable values (trial updates)."""

    def restore(self, fork: object) -> None:
        """Return to a remembered state."""


class Step(ABC):
    """How losses become one update."""

    @abstractmethod
    def begin(self, context: Context) -> None:
        """Start a stage: build optimisers over `context.groups`."""

    @abstractmethod
    def update(self, context: Context) -> dict[str, float]:
        """Do one optimiser step and return scalars to log, "loss" among them."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return all state by name for checkpoints."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, after `begin`."""


class StepConfig(ABC):
    """A frozen config that builds a step; `STEPS` lists them by name."""

    @abstractmethod
    def build(self) -> Step:
        """Return a new step."""
