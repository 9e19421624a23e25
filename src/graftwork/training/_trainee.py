"""What the driver trains: an adaptation of a frozen base, or a whole module that becomes a base."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork._errors import TrainingError
from graftwork.tuning import Group, Role, Stage


class Trainee(ABC):
    """What is trained. Calling it runs the model on a batch; objectives get it as their model.

    One update is `prepare`, backward passes through calls, `collect`, an optimiser step over
    `groups`.
    """

    stages: Sequence[Stage]
    """The stages of its training, in order; their shares sum to 1."""
    seed: int
    """Root of every random draw."""

    @abstractmethod
    def __call__(self, batch: Batch) -> Any:
        """Return the outputs for a batch, e.g. logits `(B, labels)`."""

    @property
    @abstractmethod
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that a call runs; the driver sets them to training or evaluation."""

    @property
    @abstractmethod
    def groups(self) -> Sequence[Group]:
        """Trainable values by role."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """Digest (hex) of what training starts from and does not change; guards a resume."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return all state by name, for checkpoints; not copied."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, bit for bit."""

    @abstractmethod
    def prepare(self, progress: float, *, seed: int) -> None:
        """Begin an update at `progress` in [0, 1) of the stage; draw what is random from `seed`."""

    @abstractmethod
    def collect(self) -> None:
        """End an update: fill `.grad` of every trainable value."""

    @abstractmethod
    def settled(self) -> AbstractContextManager[Any]:
        """Return a context in which calls are deterministic, as the outcome will be."""

    @abstractmethod
    def advance(self) -> bool:
        """Go on to the next stage; return False after the last one."""

    @property
    def watched(self) -> Sequence[nn.Module]:
        """Modules whose gradients `collect` only looks at, where nothing of them is trained."""
        return ()

    @property
    def device(self) -> torch.device:
        """Where the first parameter is; the CPU without parameters."""
        return device_of(self.modules[0])

    def train(self, rates: Mapping[Role, float], *, dropout: bool = True) -> None:
        """Enter a stage: values of roles without a rate need no gradient; dropout as wanted."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.requires_grad_(group.role in rates)
        for module in self.modules:
            module.train(dropout)

    def report(self) -> dict[str, float]:
        """Return scalars worth logging."""
        return {}

    def check_finite(self) -> None:
        """Raise unless every trainable value is a number.

        Raises:
            TrainingError: a value is NaN or infinite; names its role.
        """
        for group in self.groups:
            for parameter in group.parameters:
                if not bool(torch.isfinite(parameter).all()):
                    raise TrainingError(
                        f"the {group.role} are no longer finite; lower their learning rate"
                    )


def device_of(model: nn.Module) -> torch.device:
    """Return where the first parameter is; the CPU for a module without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with `prefix`, without it.

    Example:
        >>> part({"ports/head.bias": torch.zeros(1), "step/t": torch.ones(1)}, "step/")
        {'t': tensor([1.])}
    """
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
