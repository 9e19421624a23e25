"""Align first, then sum as usual: a step that watches the alignment and ends it in time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from graftwork._errors import ConfigError
from graftwork.objectives import Align, Look
from graftwork.steps._plain_sum import PlainSum, PlainSumConfig
from graftwork.steps._step import Context, Step, StepConfig
from graftwork.tuning import TuningWarning

OBJECTIVE = "align"
"""Name of the objective, and of the stream it draws from."""


@dataclass(frozen=True, kw_only=True)
class AlignedSumConfig(StepConfig):
    """How `AlignedSum` watches an alignment.

    Example:
        >>> AlignedSumConfig(patience=3).build()
        AlignedSum(...)
    """

    every: int = 5
    """Updates between looks at the probe."""
    patience: int = 4
    """Looks without a distance lower by `gain` before the alignment ends; 0 never."""
    gain: float = 0.01
    """Share of the best distance that counts as lower."""
    floor: float = 0.25
    """Share of the first separability of the classes below which they collapse: the alignment ends
    and goes back to the best look above it. 0 never."""
    sum: PlainSumConfig = field(default_factory=PlainSumConfig)
    """The updates themselves, in all stages."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.patience < 0:
            raise ConfigError(f"every >= 1 and patience >= 0, not {self.every} and {self.patience}")
        if not (0.0 <= self.gain < 1.0 and 0.0 <= self.floor < 1.0):
            raise ConfigError(f"gain and floor: in [0, 1), not {self.gain} and {self.floor}")

    def build(self) -> AlignedSum:
        """Return the step."""
        return AlignedSum(self)


class AlignedSum(Step):
    """`PlainSum`, and in the stage of the objective "align" an eye on distance and separability.

    Long alignment pulls classes into each other (Shen et al. 2023 train a fixed number of epochs
    and do not look). At every look that is the best so far the trainable values are kept. The stage
    ends, its other updates being skipped, when the distance no longer falls or the classes
    collapse; it always ends at the best look. The updates that are left cost nothing.

    Arguments:
        config: when to look and when to end.
    """

    def __init__(self, config: AlignedSumConfig | None = None) -> None:
        self.config = config or AlignedSumConfig()
        self._sum = PlainSum(self.config.sum)
        self._watch: _Watch | None = None

    def __repr__(self) -> str:
        return f"AlignedSum({self.config})"

    def begin(self, context: Context) -> None:
        """Start a stage; that of the objective "align" is watched."""
        align = context.objectives.get(OBJECTIVE)
        self._watch, config = None, self.config.sum
        if isinstance(align, Align) and len(context.objectives) == 1:
            config = replace(config, streams={OBJECTIVE: OBJECTIVE})
            rates = context.stage.learning_rates
            values = [p for g in context.groups if g.role in rates for p in g.parameters]
            self._watch = _Watch(align, values)
        self._sum = PlainSum(config)
        self._sum.begin(context)

    def update(self, context: Context) -> dict[str, float]:
        """Do one update; in a watched stage look first where it is time.

        Returns:
            What `PlainSum` returns; in a watched stage also "distance" and "separability" at the
            last look, "aligning" (0 when the alignment has ended) and "collapsed".
        """
        watch = self._watch
        if watch is None:
            return self._sum.update(context)
        if context.index % self.config.every == 0 and watch.going:
            watch.look(context, self.config)
        last = watch.scalars
        found = self._sum.update(context) if watch.going else {"loss": last["distance"]}
        if context.index + 1 == context.steps and watch.going:
            watch.look(context, self.config)
            watch.end()
        return {**found, **watch.scalars}

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of the sum and of the watch."""
        out = {f"sum.{name}": value for name, value in self._sum.tensors().items()}
        return out if self._watch is None else out | self._watch.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, after `begin`."""
        inner = {n.removeprefix("sum."): t for n, t in tensors.items() if n.startswith("sum.")}
        self._sum.load_tensors(inner)
        if self._watch is not None:
            self._watch.load_tensors(tensors)


class _Watch:
    """What a watched alignment remembers."""

    def __init__(self, align: Align, values: list[nn.Parameter]) -> None:
        self._align, self._values = align, values
        self._best = [p.detach().clone() for p in values]
        # first separability, best distance, stale looks; then what `scalars` names
        self._numbers = torch.tensor([-1, torch.inf, 0, 0, 0, 1, 0], dtype=torch.float64)

    @property
    def going(self) -> bool:
        return bool(self._numbers[5])

    @property
    def scalars(self) -> dict[str, float]:
        names = ("distance", "separability", "aligning", "collapsed")
        return dict(zip(names, self._numbers[3:].tolist(), strict=True))

    def look(self, context: Context, config: AlignedSumConfig) -> None:
        look = self._align.look(context.model)
        first, best, stale = self._numbers[:3].tolist()
        first = look.separability if first < 0 else first
        collapsed = look.separability < config.floor * first
        if not collapsed and look.distance < best:
            stale = 0 if look.distance < best * (1.0 - config.gain) else stale + 1
            best = look.distance
            for kept, value in zip(self._best, self._values, strict=True):
                kept.copy_(value.detach())
        else:
            stale += 1
        numbers = [first, best, stale, look.distance, look.separability, 1.0, float(collapsed)]
        self._numbers.copy_(torch.tensor(numbers, dtype=torch.float64))
        if collapsed:
            self._warn(look, first)
        if collapsed or 0 < config.patience <= stale:
            self.end()

    def end(self) -> None:
        """End the alignment at the best look."""
        with torch.no_grad():
            for kept, value in zip(self._best, self._values, strict=True):
                value.copy_(kept)
        self._numbers[5] = 0.0

    def _warn(self, look: Look, first: float) -> None:
        warnings.warn(
            f"alignment made classes collapse: separability fell from {first:.3f} to "
            f"{look.separability:.3f}; it ended there and went back to the best values before. "
            "Lower the learning rate of the input, or align for fewer steps",
            TuningWarning,
            stacklevel=2,
        )

    def tensors(self) -> dict[str, Tensor]:
        kept = {f"watch.best.{i}": value for i, value in enumerate(self._best)}
        return {"watch.numbers": self._numbers, **kept}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._numbers.copy_(tensors["watch.numbers"])
        for i, kept in enumerate(self._best):
            kept.copy_(tensors[f"watch.best.{i}"])
