"""How a policy acts: sample some actions, execute the one that the critics think best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graftwork.domains.control._critics import Critics, candidate_moments, masks_of
from graftwork.domains.control._losses import pre_tanh

Actor = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Observation `(O,)` -> action `(A,)` in [-1, 1]."""


def best_action(
    outputs: Tensor,
    observations: Tensor,
    critics: Critics,
    generator: torch.Generator,
    *,
    samples: int = 10,
    copies: int = 10,
) -> Tensor:
    """Return for each state the best of some sampled actions, `(B, A)`.

    The best has the highest mean Q over copies and critics.

    Args:
        outputs: `(B, 2A)` of the policy.
        observations: `(B, O)`.
        critics: judge the samples.
        generator: of samples and masks; its device is that of the tensors.
        samples: actions drawn in each state; 10 as in BEAR.
        copies: stochastic passes of the critics.
    """
    width = outputs.shape[-1] // 2
    noise = torch.empty(len(outputs), samples, width, device=outputs.device)
    actions = torch.tanh(pre_tanh(outputs, noise.normal_(generator=generator)))
    rows = (len(outputs) * samples,)
    masks = masks_of(critics.config, copies, rows, generator)
    mean, _ = candidate_moments(critics, observations, actions, masks)
    best = mean.mean(0).argmax(1)
    return actions[torch.arange(len(actions), device=actions.device), best]


def actor(
    policy: nn.Module, critics: Critics | None = None, *, seed: int = 0, samples: int = 10
) -> Actor:
    """Return what acts by `policy`: an observation in, an action out.

    Args:
        policy: observations `(B, O)` -> `(B, 2A)`; a `Policy`, or the view of one with a delta.
        critics: choose among `samples` actions; None executes the mean action, as for a policy
            that was cloned.
        seed: of samples and masks; a new actor of the same seed acts the same.
        samples: actions drawn in each state.
    """
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)

    def act(observation: NDArray[Any]) -> NDArray[np.float32]:
        row = torch.as_tensor(observation, dtype=torch.float32, device=device)[None]
        with torch.no_grad():
            outputs = policy(row)
            if critics is None:
                action = torch.tanh(outputs.chunk(2, dim=-1)[0])
            else:
                action = best_action(outputs, row, critics, generator, samples=samples)
        return action[0].cpu().numpy()

    return act
