"""Align an input port with what the base knows, then tune as usual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from graftwork._errors import ConfigError
from graftwork.deltas import BaseLike, Update
from graftwork.tuning._check import check_rates
from graftwork.tuning._head import Frozen
from graftwork.tuning._random_mask import RandomMask
from graftwork.tuning._tuner import Attachment, Group, Stage, StoredType, Tuner


@dataclass(frozen=True, kw_only=True)
class Aligned(Tuner):
    """ORCA: align, then refine (Shen, Li, Dery, Staten, Khodak, Neubig, Talwalkar, 2023).

    Stage "align" trains only the input port, on the task's objective "align": the distance between
    embedded rows and the base's own inputs. The stages of `inner` then train the port, the head and
    what `inner` tunes, on the objective "task". The paper refines by full fine-tuning; with a
    sparse `inner` the result is one small file, ports and delta together.

    Example:
        >>> tuner = Aligned(inner=RandomMask(share=0.01), align_share=0.25)
        >>> [(stage.name, stage.share, stage.objectives) for stage in tuner.stages]
        [('align', 0.25, ('align',)), ('fixed mask', 0.75, ('task',))]
        >>> tuner.stages[1].learning_rates
        {'values': 0.01, 'head': 0.001, 'input': 0.001}
    """

    inner: Tuner = field(default_factory=RandomMask)
    """How the base is refined."""
    align_share: float = 0.2
    """Part of the steps for alignment; 0 leaves it out: naive fine-tuning."""
    align_lr: float = 1e-3
    """Learning rate of the port while it is aligned."""
    input_lr: float = 1e-3
    """Learning rate of the port while the base is refined."""
    port: str = "input"
    """Name of the port."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.align_share < 1.0:
            raise ConfigError(f"align_share: in [0, 1), not {self.align_share}")
        check_rates(align_lr=self.align_lr, input_lr=self.input_lr)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Alignment, then the stages of `inner` in what is left."""
        inner = tuple(
            replace(
                stage,
                share=stage.share * (1.0 - self.align_share),
                learning_rates={**stage.learning_rates, self.port: self.input_lr},
                decay=(*stage.decay, self.port),
                objectives=stage.objectives or ("task",),
            )
            for stage in self.inner.stages
        )
        if not self.align_share:
            return inner
        align = Stage(
            "align",
            self.align_share,
            {self.port: self.align_lr},
            decay=(self.port,),
            objectives=("align",),
        )
        return (align, *inner)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:
        """See `Tuner.attach`."""
        following = self.inner.attach(base, targets, seed=seed)
        return _Waiting(base, following) if self.align_share else following


class _Waiting(Attachment):
    """The base as it is, and the attachment that comes after."""

    def __init__(self, base: BaseLike, following: Attachment) -> None:
        self._frozen, self._following = Frozen(base), following
        self.module: nn.Module = self._frozen.module

    def groups(self) -> Sequence[Group]:
        return ()

    def prepare(self, progress: float, *, seed: int) -> None:
        """Do nothing."""

    def collect(self) -> None:
        """Do nothing."""

    def settled(self) -> AbstractContextManager[nn.Module]:
        return self._frozen.settled()

    def advance(self) -> Attachment | None:
        return self._following

    def extract(self, stored: StoredType = "float16") -> dict[str, Update]:
        return self._frozen.extract(stored)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._frozen.load_tensors(tensors)
