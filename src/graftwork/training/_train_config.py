"""Budget, precision, evaluation and saving of a training, and how stages share the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graftwork._errors import ConfigError
from graftwork.tasks import Stream
from graftwork.training._context import Precision
from graftwork.tuning import Role, Stage


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how a training goes.

    Raises:
        ConfigError: a value is out of range; names the field.

    Example:
        >>> TrainConfig(
        ...     steps=300, learning_rates={"fixed mask": {"values": 3e-3}}
        ... ).batch_size is None
        True
    """

    steps: int = 500
    """Updates over all stages together; each stage has its share of them."""
    epochs: float | None = None
    """Passes over the training rows; takes the place of `steps` where set."""
    batch_size: int | None = None
    """Rows of a batch over all processes together; None keeps the stream's own."""
    accumulate: int = 1
    """Batches whose gradients one update adds up, as if they were one large batch."""
    precision: Precision = "fp32"
    """"bf16" runs the forward pass under autocast; what is learnt stays in 32 bits."""
    dropout: bool = True
    """Whether the dropout that the base has is on. Without it, small data overfit sooner, but runs
    over one or several processes agree to rounding."""
    learning_rates: Mapping[str, Mapping[Role, float]] = field(default_factory=dict)
    """Stage name -> role -> rate, in the place of the tuner's own."""
    eval_every: int = 0
    """Updates between evaluations; 0 evaluates only the finished delta."""
    eval_batch_size: int = 64
    """Rows of a batch in evaluations."""
    patience: int = 0
    """Evaluations of the last stage without a better main metric before the run ends; 0 never.
    Earlier stages always run to their end, because their schedules need it."""
    keep_best: bool = False
    """Whether the delta is that of the best evaluation of the last stage, not of the last step."""
    save_every: int = 200
    """Updates between checkpoints; 0 saves only on Ctrl-C."""
    log_every: int = 10
    """Updates between rows of metrics.jsonl."""

    def __post_init__(self) -> None:
        positive = {"steps": self.steps, "accumulate": self.accumulate, "log_every": self.log_every}
        positive["eval_batch_size"] = self.eval_batch_size
        positive |= {} if self.batch_size is None else {"batch_size": self.batch_size}
        for name, value in positive.items():
            if value < 1:
                raise ConfigError(f"{name}: 1 or more, not {value}")
        for name in ("eval_every", "patience", "save_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: 0 or more, not {getattr(self, name)}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ConfigError(f"epochs: above 0, not {self.epochs}")
        for stage, rates in self.learning_rates.items():
            for role, rate in rates.items():
                if not 0 < rate < math.inf:
                    raise ConfigError(f"learning_rates.{stage}.{role}: above 0, not {rate}")


def stage_steps(config: TrainConfig, stages: Sequence[Stage], stream: Stream) -> list[int]:
    """Return the updates of each stage; they sum to the budget, each stage has at least one.

    Raises:
        ConfigError: fewer updates than stages, or epochs of a stream without an end.
    """
    total = config.steps
    if config.epochs is not None:
        rows, batch = getattr(stream, "__len__", None), getattr(stream, "batch_size", None)
        if rows is None or batch is None:
            raise ConfigError(f"epochs: stream {stream.name!r} has no end; set steps")
        total = max(1, math.ceil(config.epochs * rows() / (batch * config.accumulate)))
    return share_steps(total, [stage.share for stage in stages])


def share_steps(total: int, shares: Sequence[float]) -> list[int]:
    """Return `total` parted by `shares` (largest remainder), at least 1 each.

    Raises:
        ConfigError: `total` is less than the number of shares.

    Example:
        >>> share_steps(500, [0.7, 0.3]), share_steps(10, [0.01, 0.99])
        ([350, 150], [1, 9])
    """
    if total < len(shares):
        raise ConfigError(f"steps: {total} are fewer than the {len(shares)} stages of the tuner")
    exact = [total * share for share in shares]
    parts = [max(1, math.floor(e + 1e-9)) for e in exact]
    order = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in order[: max(0, total - sum(parts))]:
        parts[i] += 1
    while sum(parts) > total:
        parts[parts.index(max(parts))] -= 1
    return parts
