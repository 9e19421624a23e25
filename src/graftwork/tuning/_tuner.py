"""What a tuner is: it parametrises a delta for learning and sees no loss.

A tuner is a frozen config. `attach` gives an `Attachment`: a module that runs like the base, whose
touched parameters are computed from trainable values. One optimiser step over it is

    attachment.prepare(progress)      # draw gates once, write the working weights
    loss(attachment.module(...)).backward()            # as often as gradients are accumulated
    attachment.collect()              # working gradients -> gradients of the trainable values
    optimiser.step(); optimiser.zero_grad()

so any training loop can drive it. Tuners with several stages (gates, projection, fixed mask)
return the next stage's attachment from `advance`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from graftwork._errors import UnsupportedError
from graftwork.deltas import BaseLike, Port, Update

Role = str
"""What trainable values are: "values", "gates", "head", or a port or part of a module by name."""
StoredType = Literal["float16", "bfloat16", "float32", "float64", "int8"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a tuner's training.

    Attributes:
        name: shown in progress bars and metrics, e.g. "gates".
        share: share of the run's steps; shares of a tuner's stages sum to 1.
        learning_rates: learning rate by role; a role that is absent is frozen in this stage.
        decay: roles whose rate decays linearly to 0 (the paper keeps the gates' rate constant).
        clip: gradient norm limit by role; separate for each, as in the paper.
        batch_size: overrides the run's batch size (Fisher scores want small batches).
        objectives: names of the task's objectives that this stage minimises; empty for all.
    """

    name: str
    share: float
    learning_rates: Mapping[Role, float]
    decay: tuple[Role, ...] = ("values", "head")
    clip: float | None = 1.0
    batch_size: int | None = None
    objectives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Trainable tensors that share an optimiser setting."""

    role: Role
    parameters: tuple[nn.Parameter, ...]


class Attachment(ABC):
    """A tuner bound to a base for one stage. See the module docstring for the loop."""

    module: nn.Module
    """Runs like the base; never shares writable storage with it for touched tensors."""

    @abstractmethod
    def groups(self) -> Sequence[Group]:
        """Return the trainable tensors of this stage; may be empty (head only)."""

    @abstractmethod
    def prepare(self, progress: float, *, seed: int) -> None:
        """Begin an optimiser step: draw what is random from `seed`, write the working weights.

        `progress` in [0, 1) is the part of this stage that is done; schedules read only it.
        The same `seed` gives the same draw in every process.
        """

    @abstractmethod
    def collect(self) -> None:
        """End an optimiser step: working gradients -> `.grad` of the trainable tensors."""

    @abstractmethod
    def settled(self) -> AbstractContextManager[nn.Module]:
        """Return a context in which `module` is deterministic, as it would be extracted now."""

    @abstractmethod
    def advance(self) -> Attachment | None:
        """Return the next stage's attachment, or None after the last stage.

        It works before any training too: a resumed run advances to its stage and then loads the
        stage's tensors, so shapes must not depend on what was learnt.
        """

    @abstractmethod
    def extract(self, stored: StoredType = "float16") -> dict[str, Update]:
        """Return the learnt updates by canonical name, values rounded to their stored type."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return all state beside the base, by name, for checkpoints (not copied)."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, bit for bit."""

    def ports(self, stored: StoredType = "float16") -> dict[str, Port]:  # noqa: ARG002
        """Return the learnt modules inside the base by port name, rounded; most tuners have none.

        `module` runs them in training, and `graftwork.deltas.view` does afterwards.
        """
        return {}

    def start_from(self, updates: Mapping[str, Update], ports: Mapping[str, Port]) -> None:
        """Begin where a delta left off, instead of at the base; call it before the first step.

        Arguments:
            updates: by canonical name, as the delta has them; targets without one start as ever.
            ports: those of the delta that lie inside the base.

        Raises:
            UnsupportedError: this stage cannot begin so.
            DeltaError: the delta changes what is no target, or in a way that is not trained here.
        """
        del updates, ports
        raise UnsupportedError(
            f"{type(self).__name__} cannot begin where a delta left off: it still has to choose "
            "what it trains; continue with a tuner of one stage (full, random_mask, lora, ...)"
        )

    def report(self) -> dict[str, float]:
        """Return scalars worth logging (density, shift, ...)."""
        return {}

    def __iter__(self) -> Iterator[nn.Parameter]:
        """Iterate over the trainable tensors of every group."""
        return (p for group in self.groups() for p in group.parameters)


class Tuner(ABC):
    """A frozen config that attaches to a base."""

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order; their shares sum to 1."""

    @abstractmethod
    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:
        """Return the first stage's attachment over the canonical tensor names `targets`.

        Raises:
            UnsupportedError: a target cannot be supported.
            ConfigError: the target share keeps 0 values, or a value is out of range.
        """
