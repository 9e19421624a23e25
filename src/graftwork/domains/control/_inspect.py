"""What can be said of a policy and its critics without the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.domains.control._critics import Critics, masks_of, moments
from graftwork.domains.control._losses import cloning
from graftwork.domains.control._uwac import ActorCritic
from graftwork.errors import InputError
from graftwork.objectives import Model
from graftwork.tasks import Stream
from graftwork.training import derive


def uncertainty(
    critics: Critics,
    observations: Tensor,
    actions: Tensor,
    *,
    copies: int = 100,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the mean of Q over copies and critics, and the sum of their variances, `(N,)` each.

    Args:
        critics: with dropout.
        observations: `(N, O)`.
        actions: `(N, A)`.
        copies: stochastic passes.
        seed: of the masks.

    Example:
        >>> from graftwork.domains.control import CriticConfig
        >>> critics = CriticConfig(observations=3, actions=2, hidden=(8,)).build(seed=0)
        >>> _, variance = uncertainty(critics, torch.zeros(4, 3), torch.zeros(4, 2))
        >>> bool((variance > 0).all())
        True
    """
    generator = torch.Generator(observations.device).manual_seed(seed)
    masks = masks_of(critics.config, copies, (len(observations),), generator)
    with torch.no_grad():
        mean, variance = moments(critics(observations, actions, masks))
    return mean.mean(0), variance.sum(0)


def separation(low: Tensor, high: Tensor) -> float:
    """Return the probability that a value of `high` is above one of `low` (AUROC), ties half.

    Args:
        low: `(N,)`, e.g. variances of logged actions.
        high: `(M,)`, e.g. variances of random actions.

    Example:
        >>> separation(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
        0.875
    """
    above = (high[:, None] > low[None]).double().mean()
    equal = (high[:, None] == low[None]).double().mean()
    return float(above + 0.5 * equal)


@dataclass(frozen=True, slots=True)
class OffPolicy:
    """A scorer of policies on logged rows, for early stopping without the environment.

    It measures, with draws that depend on the seed alone:

    * "target_q": mean Bellman target; values far above what rewards allow say that Q runs away;
    * "weight": mean weight of the target; near 0 learning freezes (lower beta or the rewards);
    * "mmd": mean discrepancy of policy and behaviour model, before the tanh.

    The main one is "mmd", the smaller the better: a Q that runs away is no merit.

    Args:
        step: whose critics and behaviour model judge.
        rows: of the stream's first ones that are looked at.
        seed: of all draws.
    """

    step: ActorCritic
    rows: int = 256
    seed: int = 0

    @property
    def main(self) -> str:
        """The metric that decides."""
        return "mmd"

    def better(self, new: Mapping[str, float], old: Mapping[str, float] | None) -> bool:
        """Return whether `new` is the better evaluation."""
        return old is None or new[self.main] < old[self.main]

    def evaluate(self, model: Model, stream: Stream, batch_size: int = 64) -> dict[str, float]:
        """Return the three numbers over the first rows of a stream.

        Raises:
            InputError: the stream is empty.
        """
        sums: dict[str, float] = {}
        count = 0
        for number, batch in enumerate(stream.once(batch_size)):
            batch = batch.select(torch.arange(min(len(batch), self.rows - count)))
            batch = batch.to(self.step.log_multiplier.device)
            found = self.step.judge(model, batch, derive(self.seed, "off-policy", number))
            for name, values in found.items():
                sums[name] = sums.get(name, 0.0) + values.double().sum().item()
            count += len(batch)
            if count >= self.rows:
                break
        if not count:
            raise InputError(f"stream {stream.name!r} has no rows to evaluate on")
        return {name: total / count for name, total in sums.items()}


@dataclass(frozen=True, slots=True)
class Imitation:
    """A scorer of cloned policies: "nll", the mean of the loss `cloning` over a stream."""

    @property
    def main(self) -> str:
        """The metric that decides."""
        return "nll"

    def better(self, new: Mapping[str, float], old: Mapping[str, float] | None) -> bool:
        """Return whether `new` is the better evaluation."""
        return old is None or new[self.main] < old[self.main]

    def evaluate(self, model: Model, stream: Stream, batch_size: int = 64) -> dict[str, float]:
        """Return the mean over all rows of a stream, in nats an entry of the action."""
        with torch.no_grad():
            losses = [cloning(model, batch) for batch in stream.once(batch_size)]
        return {"nll": torch.cat(losses).double().mean().item()}
