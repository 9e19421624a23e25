"""A stochastic policy: observation -> mean and log standard deviation of an action before its tanh.

Shape legend: B rows, O entries of an observation, A of an action.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graftwork._errors import ConfigError
from graftwork.models._config import ModelConfig

LOG_SIGMA = (-5.0, 2.0)
"""Limits of the log standard deviation."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(ModelConfig):
    """Sizes of `Policy`. The defaults are those of UWAC (Wu et al. 2021).

    Raises:
        ConfigError: a size that is not positive.

    Example:
        >>> policy = PolicyConfig(observations=39, actions=28).build()
        >>> policy(torch.zeros(5, 39)).shape
        torch.Size([5, 56])
    """

    observations: int
    """O."""
    actions: int
    """A."""
    width: int = 256
    """Units of a hidden layer."""
    layers: int = 2
    """Hidden layers."""

    def __post_init__(self) -> None:
        if min(self.observations, self.actions, self.width, self.layers) < 1:
            raise ConfigError(f"sizes of a policy must be positive: {self}")

    @property
    def output_width(self) -> int:
        """2A: mean and log standard deviation."""
        return 2 * self.actions

    def build(self) -> Policy:
        """Return a new policy; its first values come from torch's own generator."""
        return Policy(self)

    def body(self) -> PolicyConfig:
        """Return the config itself: a policy has no heads of pretraining."""
        return self


class Policy(nn.Module):
    """A multilayer perceptron that gives a tanh-Gaussian policy, `a = tanh(mu + sigma noise)`.

    It gives the two parameters, not an action: losses want many samples of one forward pass, and a
    delta adapts it like any other module. First values: weights uniform within `1 / sqrt(inputs)`,
    hidden biases 0.1, last layer uniform within 0.001, so that the first actions are near N(0, 1)
    before the tanh.

    Args:
        config: its sizes.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.observations, *[config.width] * config.layers]
        self.hidden = nn.ModuleList(
            nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)
        )
        self.output = nn.Linear(config.width, 2 * config.actions)
        with torch.no_grad():
            for layer in self.hidden:
                assert isinstance(layer, nn.Linear)
                layer.weight.uniform_(-1.0, 1.0).div_(math.sqrt(layer.in_features))
                layer.bias.fill_(0.1)
            self.output.weight.uniform_(-1e-3, 1e-3)
            self.output.bias.uniform_(-1e-3, 1e-3)

    def forward(self, observations: Tensor) -> Tensor:
        """Return mean and log standard deviation, `(B, 2A)`, of observations `(B, O)`."""
        x = observations
        for layer in self.hidden:
            x = torch.relu(layer(x))
        mean, log_sigma = self.output(x).chunk(2, dim=-1)
        return torch.cat([mean, log_sigma.clamp(*LOG_SIGMA)], dim=-1)
