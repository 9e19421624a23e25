"""What measures a task: `Evaluator` for labels and values, a domain's own for anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from graftwork.objectives import Model
from graftwork.tasks._stream import Stream


@runtime_checkable
class Scorer(Protocol):
    """Metric values with their direction."""

    @property
    def main(self) -> str:
        """The metric that decides which model is best."""

    def better(self, new: Mapping[str, float], old: Mapping[str, float] | None) -> bool:
        """Return whether `new` values beat `old` ones in the main metric; a tie does not."""

    def evaluate(self, model: Model, source: Stream, batch_size: int = 64) -> dict[str, float]:
        """Return metric values of `model` over a stream, by name.

        The model is called without gradients; it is in evaluation mode already.
        """
