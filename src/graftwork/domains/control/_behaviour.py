"""The behaviour model: a conditional variational autoencoder of the logged actions.

Shape legend: N rows, O entries of an observation, A of an action, Z of the latent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LOG_SIGMA = (-4.0, 15.0)
"""Limits of the encoder's log standard deviation."""
PRIOR_CLIP = 0.5
"""Latents are drawn from N(0, 1) and clipped to ±0.5, so that samples stay near the data."""


class BehaviourModel(nn.Module):
    """p(a | s) by `(s, a) -> N(mu, sigma)` and `(s, z) -> tanh(...)` (Fujimoto et al. 2019).

    First values: uniform within `1 / sqrt(inputs)`, weights and biases, from `generator` alone.

    Args:
        observations: O.
        actions: A.
        hidden: units of the two hidden layers of each half.
        generator: of the first values.

    Example:
        >>> model = BehaviourModel(3, 2, 16, torch.Generator().manual_seed(0))
        >>> model.decode(torch.zeros(5, 3), torch.zeros(5, model.latent)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, observations: int, actions: int, hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.latent = 2 * actions
        self.encoder = mlp((observations + actions, hidden, hidden, 2 * self.latent), generator)
        self.decoder = mlp((observations + self.latent, hidden, hidden, actions), generator)

    def encode(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of the latent, `(N, Z)` each."""
        mean, log_sigma = self.encoder(torch.cat([observations, actions], dim=-1)).chunk(2, dim=-1)
        return mean, log_sigma.clamp(*LOG_SIGMA)

    def decode(self, observations: Tensor, latent: Tensor) -> Tensor:
        """Return pre-tanh actions `(N, A)`."""
        out: Tensor = self.decoder(torch.cat([observations, latent], dim=-1))
        return out

    def forward(self, observations: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of each row, `(N,)`; `noise` is `(N, Z)` standard normal."""
        mean, log_sigma = self.encode(observations, actions)
        rebuilt = torch.tanh(self.decode(observations, mean + log_sigma.exp() * noise))
        return behaviour_losses(rebuilt, actions, mean, log_sigma)


def behaviour_losses(rebuilt: Tensor, actions: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """Return `mean (rebuilt - a)^2 + 0.5 mean KL` of each row, `(N,)`.

    Means are over entries of the action and of the latent; an entry's divergence from N(0, 1) is
    `(mu^2 + sigma^2 - 1) / 2 - log sigma`.

    Args:
        rebuilt: `(N, A)` in [-1, 1].
        actions: `(N, A)`.
        mean: `(N, Z)`.
        log_sigma: `(N, Z)`.
    """
    divergence = 0.5 * (mean.square() + (2.0 * log_sigma).exp() - 1.0) - log_sigma
    return (rebuilt - actions).square().mean(-1) + 0.5 * divergence.mean(-1)


def mlp(sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Return linear layers with ReLU between them, uniform within `1 / sqrt(inputs)`."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        bound = 1.0 / math.sqrt(inputs)
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
