"""Head only: the base stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from graftwork.deltas import BaseLike, Port, Update, shared_copy
from graftwork.tuning._check import check_rates, refuse_others
from graftwork.tuning._state import restore
from graftwork.tuning._tuner import Attachment, Group, Stage, StoredType, Tuner


@dataclass(frozen=True, kw_only=True)
class Head(Tuner):
    """Train nothing but the ports: the frozen base as a feature extractor.

    Targets are ignored. The delta has no updates, so it is as small as its head.

    Example:
        >>> Head().stages[0].learning_rates
        {'head': 0.01}
    """

    head_lr: float = 1e-2
    """Learning rate of the head. Ten times that beside other values: alone, a head has to go
    further, and 1e-3 leaves a frozen base looking worse than it is (docs/study.md)."""

    def __post_init__(self) -> None:
        check_rates(head_lr=self.head_lr)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage("head", 1.0, {"head": self.head_lr}),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:  # noqa: ARG002
        """See `Tuner.attach`; targets are ignored."""
        return Frozen(base)


class Frozen(Attachment):
    """An attachment without trainable values.

    Arguments:
        base: the frozen base.
    """

    def __init__(self, base: BaseLike) -> None:
        self.module = shared_copy(base.model)

    def groups(self) -> Sequence[Group]:
        """Return nothing."""
        return ()

    def prepare(self, progress: float, *, seed: int) -> None:
        """Do nothing."""

    def collect(self) -> None:
        """Do nothing."""

    @contextmanager
    def settled(self) -> Iterator[nn.Module]:
        """Return the module."""
        yield self.module

    def start_from(self, updates: Mapping[str, Update], ports: Mapping[str, Port]) -> None:
        """See `Attachment.start_from`: only a delta that changes nothing of the base will do."""
        refuse_others("Head", updates, ports, "", ())

    def advance(self) -> Attachment | None:
        """Return None: there is one stage."""
        return None

    def extract(self, stored: StoredType = "float16") -> dict[str, Update]:  # noqa: ARG002
        """Return no updates."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that there is nothing."""
        restore({}, tensors)
