"""First stages that are trained once and entered several times.

Two-stage tuners (gates, scores or full fine-tuning, then a fixed mask) spend most of their time in
the first stage, and many second stages can start from one: other rates, other densities.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from graftwork.bases import Base
from graftwork.deltas import BaseLike
from graftwork.tasks import Task
from graftwork.training import Adaptation, TrainConfig, fit, start
from graftwork.tuning import Attachment, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class First(Tuner):
    """The first stage of `inner`, alone."""

    inner: Tuner

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that takes all the steps."""
        return (replace(self.inner.stages[0], share=1.0),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:
        """As `inner`."""
        return self.inner.attach(base, targets, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Then(Tuner):
    """The second stage of `inner`, entered from the state that `First` left."""

    inner: Tuner
    left: Mapping[str, Tensor]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that takes all the steps."""
        return (replace(self.inner.stages[1], share=1.0),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:
        """As `inner` after its first stage."""
        first = self.inner.attach(base, targets, seed=seed)
        attached = {k.removeprefix("attachment/"): v for k, v in self.left.items()}
        first.load_tensors({k: v for k, v in attached.items() if not k.startswith("ports/")})
        with warnings.catch_warnings():
            # the first stage may have been steered to another density; the projection is exact
            warnings.simplefilter("ignore")
            second = first.advance()
        assert second is not None
        return second


def first(
    base: Base, task: Task, tuner: Tuner, steps: int, targets: Sequence[str] | None, seed: int
) -> dict[str, Tensor]:
    """Return the state after the first stage of `tuner`."""
    adaptation = start(base, task, First(inner=tuner), targets=targets, seed=seed)
    fit(adaptation, task, TrainConfig(steps=steps, dropout=False))
    return {name: tensor.detach().clone() for name, tensor in adaptation.tensors().items()}


def second(
    base: Base, task: Task, tuner: Tuner, targets: Sequence[str] | None, seed: int
) -> Callable[[Mapping[str, Tensor], int], Adaptation]:
    """Return a function: (state after the first stage, steps) -> the trained second stage."""

    def run(left: Mapping[str, Tensor], steps: int) -> Adaptation:
        adaptation = start(base, task, Then(inner=tuner, left=left), targets=targets, seed=seed)
        head = {k.removeprefix("ports/"): v for k, v in left.items() if k.startswith("ports/")}
        adaptation.ports.load_state_dict(head)
        fit(adaptation, task, TrainConfig(steps=steps, dropout=False))
        return adaptation

    return run
