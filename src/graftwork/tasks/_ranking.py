"""Which of two evaluations is better: the part that all evaluators share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable


@runtime_checkable
class Directed(Protocol):
    """The part of a metric that ranking needs."""

    @property
    def direction(self) -> str:
        """Whether more ("max") or less ("min") is better."""


class Ranking:
    """Ranks evaluations by the first of `metrics`.

    Attributes:
        known: metric name -> metric, of the evaluators of one kind.
        metrics: names; the first decides which model is best.
    """

    __slots__ = ()
    known: ClassVar[Mapping[str, Directed]]
    metrics: tuple[str, ...]

    @property
    def main(self) -> str:
        """The metric that decides which model is best."""
        return self.metrics[0]

    @property
    def direction(self) -> str:
        """Whether more ("max") or less ("min") of the main metric is better."""
        return self.known[self.main].direction

    def better(self, new: Mapping[str, float], old: Mapping[str, float] | None) -> bool:
        """Return whether `new` values beat `old` ones in the main metric; a tie does not."""
        if old is None:
            return True
        difference = new[self.main] - old[self.main]
        return difference > 0 if self.direction == "max" else difference < 0
