"""The losses of BEAR and UWAC as pure functions of tensors.

Shape legend: E critics, B states, K candidate actions in a state, A entries of an action.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from graftwork.errors import InputError
from graftwork.objectives import Model
from graftwork.tasks import Batch

Weighting = Literal["exponential", "inverse", "none"]


def uncertainty_weights(
    variance: Tensor, weighting: Weighting = "exponential", *, beta: float = 0.5, most: float = 1.5
) -> Tensor:
    """Return the weight of each row from the critics' variance there; no gradient flows through it.

    * "exponential": `exp(-beta Var)`, in [0, 1]; what the authors' code does.
    * "inverse": `beta / Var` clipped to [0, most]; the paper's form (Wu et al. 2021, eq. 6). The
      upper limit 1.5 is unsure.
    * "none": 1.

    Args:
        variance: any shape, 0 or more.
        weighting: the form.
        beta: how much uncertainty counts. Variance grows with the square of the scale of Q, so
            rewards on another scale want another beta: watch the mean weight.
        most: upper limit of the inverse form.

    Example:
        >>> uncertainty_weights(torch.tensor([0.0, 2.0]))
        tensor([1.0000, 0.3679])
        >>> uncertainty_weights(torch.tensor([0.0, 2.0]), "inverse")
        tensor([1.5000, 0.2500])
    """
    variance = variance.detach()
    if weighting == "exponential":
        return torch.exp(-beta * variance).clamp(0.0, 1.0)
    if weighting == "inverse":
        return (beta / variance).clamp(0.0, most)
    return torch.ones_like(variance)


def mixed_minimum(values: Tensor, share: float = 0.75) -> Tensor:
    """Return `share * min + (1 - share) * max` over the critics: `(E, ...)` -> `(...)`."""
    return share * values.amin(0) + (1.0 - share) * values.amax(0)


def bellman_target(
    rewards: Tensor,
    terminals: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    discount: float = 0.99,
    share: float = 0.75,
) -> tuple[Tensor, Tensor]:
    """Return the critics' target and its variance, `(B,)` each.

    `y = r + discount (1 - terminal) max_k (share min_e Q + (1 - share) max_e Q)` and
    `Var = max_k sum_e Var_e`, each with a maximum of its own over the candidates.

    Args:
        rewards: `(B,)`.
        terminals: `(B,)`, 1 where nothing follows.
        mean: `(E, B, K)` of the target critics in the next state.
        variance: `(E, B, K)`.
        discount: gamma.
        share: of the smaller critic.
    """
    best = mixed_minimum(mean, share).amax(-1)
    return rewards + discount * (1.0 - terminals) * best, variance.sum(0).amax(-1)


def critic_losses(values: Tensor, target: Tensor, weights: Tensor, *, squared: bool) -> Tensor:
    """Return the loss of each critic on each row, `(E, B)`.

    The authors' code multiplies the error before it squares it, `(w err)^2`; the paper's equation
    is `w err^2`.

    Args:
        values: `(E, B)`, one dropout sample of `Q(s, a)`.
        target: `(B,)`, without a gradient.
        weights: `(B,)`, without a gradient.
        squared: True for the code's form.
    """
    return (weights.square() if squared else weights) * (values - target).square()


def actor_losses(
    values: Tensor, weights: Tensor, gap: Tensor, multiplier: Tensor, *, limit: float, warm: bool
) -> Tensor:
    """Return `-w min_e Q(s, pi(s)) + multiplier (MMD - limit)` of each row, `(B,)`.

    Args:
        values: `(E, B)`, mean over the copies.
        weights: `(B,)`, without a gradient.
        gap: `(B,)`, MMD of policy and behaviour.
        multiplier: scalar; the dual variable, without a gradient.
        limit: epsilon.
        warm: True leaves the first term out.
    """
    constraint = multiplier * (gap - limit)
    return constraint if warm else constraint - weights * values.amin(0)


def pre_tanh(outputs: Tensor, noise: Tensor) -> Tensor:
    """Return samples of a Gaussian policy before the tanh, `(B, n, A)`.

    Args:
        outputs: `(B, 2A)` of the policy: mean and log standard deviation.
        noise: `(B, n, A)` standard normal.
    """
    mean, log_sigma = outputs.chunk(2, dim=-1)
    return mean[:, None] + log_sigma.exp()[:, None] * noise


CLONE_LIMIT = 0.999
"""Logged actions are pulled within ±0.999 before their arctanh, which has no value at ±1."""


def cloning(model: Model, batch: Batch) -> Tensor:
    """Return `-log p(a | s)` of a tanh-Gaussian policy, a mean over the action's entries, `(B,)`.

    Behaviour cloning as an objective: `PlainSum` with it is the baseline BC.

    Args:
        model: batch -> `(B, 2A)` mean and log standard deviation before the tanh.
        batch: input "actions" `(B, A)` in [-1, 1].

    Raises:
        InputError: the model gives other than two numbers for each entry of an action.

    Example:
        >>> batch = Batch({"actions": torch.zeros(3, 2)}, None, torch.arange(3))
        >>> cloning(lambda b: torch.zeros(3, 4), batch)
        tensor([0.9189, 0.9189, 0.9189])
    """
    actions = batch.inputs["actions"]
    outputs: Tensor = model(batch)
    actions = actions.to(outputs.device)
    if outputs.shape != (len(actions), 2 * actions.shape[-1]):
        raise InputError(
            f"cloning needs mean and log standard deviation of {actions.shape[-1]} entries, but "
            f"the model gave {tuple(outputs.shape)}"
        )
    mean, log_sigma = outputs.float().chunk(2, dim=-1)
    raw = torch.atanh(actions.clamp(-CLONE_LIMIT, CLONE_LIMIT))
    # log|d tanh / dx| = 2 (log 2 - x - softplus(-2 x)), exact for large |x|
    slope = 2.0 * (math.log(2.0) - raw - torch.nn.functional.softplus(-2.0 * raw))
    gauss = 0.5 * ((raw - mean) / log_sigma.exp()).square() + log_sigma
    # density of a = density of its arctanh / |d tanh|, hence plus the logarithm of the slope
    losses: Tensor = (gauss + 0.5 * math.log(2.0 * math.pi) + slope).mean(-1)
    return losses
