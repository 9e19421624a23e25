"""Critics with Monte-Carlo dropout that is always on: an ensemble evaluated as one batched product.

Shape legend: E critics, T stochastic copies, N rows, O entries of an observation, A of an action,
H hidden units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graftwork.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Shape of the critics.

    Example:
        >>> critics = CriticConfig(observations=3, actions=2, hidden=(8, 8)).build(seed=0)
        >>> critics(torch.zeros(5, 3), torch.zeros(5, 2)).shape  # (E, T, N)
        torch.Size([2, 1, 5])
    """

    observations: int = 0
    """Entries of an observation; `train_policy` fills it in from the data."""
    actions: int = 0
    """Entries of an action; likewise."""
    hidden: tuple[int, ...] = (256, 256)
    """Units of the hidden layers, ReLU after each."""
    heads: int = 2
    """Critics of the ensemble; two, as in BEAR and UWAC."""
    dropout: float = 0.1
    """Probability that a hidden unit is zeroed, after every hidden layer; 0 for BEAR."""
    spectral: bool = False
    """Whether every weight is divided by its largest singular value (the paper: needed on harder
    tasks)."""

    def __post_init__(self) -> None:
        sizes = (self.heads, *self.hidden)
        if not self.hidden or min(sizes) < 1 or min(self.observations, self.actions) < 0:
            raise ConfigError(f"critics: sizes are 1 or more, and one hidden layer or more: {self}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout: in [0, 1), not {self.dropout}")

    def build(self, *, seed: int) -> Critics:
        """Return new critics whose first values come from `seed` alone.

        Raises:
            ConfigError: the sizes of observations and actions are not set.
        """
        if not self.observations or not self.actions:
            raise ConfigError(
                f"critics need the entries of observations and actions, not {self.observations} "
                f"and {self.actions}"
            )
        return Critics(self, torch.Generator().manual_seed(seed))


class Critics(nn.Module):
    """E multilayer perceptrons `Q(s, a)`, evaluated together.

    Dropout is no mode of the module: whoever calls it passes the masks, so `eval()` cannot switch
    the uncertainty off, and copies have masks of their own. The first layer does not depend on the
    masks and is computed once for all T copies.

    With `spectral`, a weight is divided by `left W right`, an estimate of its largest singular
    value that one call of `iterate` an update improves (Miyato et al. 2018, algorithm 1).

    First values: weights uniform within `1 / sqrt(inputs)`, hidden biases 0.1, last layer uniform
    within 0.003.

    Args:
        config: the shape.
        generator: of the first values.
    """

    def __init__(self, config: CriticConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        sizes = [config.observations + config.actions, *config.hidden, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            last = i + 2 == len(sizes)
            bound = 3e-3 if last else 1.0 / math.sqrt(inputs)
            weight = torch.empty(config.heads, inputs, outputs)
            bias = torch.full((config.heads, outputs), 0.1)
            self.weights.append(weight.uniform_(-bound, bound, generator=generator))
            self.biases.append(bias.uniform_(-bound, bound, generator=generator) if last else bias)
            if config.spectral:
                right = torch.randn(config.heads, outputs, generator=generator)
                self.register_buffer(f"left{i}", torch.zeros(config.heads, inputs))
                self.register_buffer(f"right{i}", nn.functional.normalize(right, dim=1))
        for _ in range(15 if config.spectral else 0):
            self.iterate()

    def iterate(self) -> None:
        """Make one power iteration for each weight; nothing without spectral normalisation."""
        if not self.config.spectral:
            return
        with torch.no_grad():
            for i, weight in enumerate(self.weights):
                left, right = self.get_buffer(f"left{i}"), self.get_buffer(f"right{i}")
                left.copy_(nn.functional.normalize((weight @ right[..., None])[..., 0], dim=1))
                right.copy_(nn.functional.normalize((left[:, None] @ weight)[:, 0], dim=1))

    def effective(self) -> list[Tensor]:
        """Return the weight `(E, inputs, outputs)` of each layer as it is used."""
        if not self.config.spectral:
            return list(self.weights)
        out = []
        for i, weight in enumerate(self.weights):
            left, right = self.get_buffer(f"left{i}"), self.get_buffer(f"right{i}")
            norm = left[:, None] @ weight @ right[..., None]
            out.append(weight / norm)
        return out

    def forward(
        self, observations: Tensor, actions: Tensor, masks: Sequence[Tensor] = ()
    ) -> Tensor:
        """Return the values `(E, T, N)`.

        Args:
            observations: `(N, O)`.
            actions: `(N, A)`.
            masks: for each hidden layer `(E, T, N, H)`, 0 where a unit is dropped and
                `1 / (1 - dropout)` elsewhere (`masks_of` draws them); empty: no dropout, T = 1.

        Raises:
            InputError: masks for another number of layers.
        """
        if len(masks) not in (0, len(self.config.hidden)):
            raise InputError(f"{len(masks)} masks for {len(self.config.hidden)} hidden layers")
        weights = self.effective()
        x = torch.cat([observations, actions], dim=-1)
        copies = masks[0].shape[1] if masks else 1
        h = torch.relu(x @ weights[0] + self.biases[0][:, None])
        if masks:
            h = (h[:, None] * masks[0]).flatten(1, 2)
        for i, weight in enumerate(weights[1:], start=1):
            h = torch.baddbmm(self.biases[i][:, None], h, weight)
            if i < len(self.config.hidden):
                h = torch.relu(h)
                h = h * masks[i].flatten(1, 2) if masks else h
        return h.reshape(self.config.heads, copies, len(x))


def masks_of(
    config: CriticConfig, copies: int, rows: Sequence[int], generator: torch.Generator
) -> list[Tensor]:
    """Draw the dropout masks of `copies` forward passes, independent in every copy, row and unit.

    Args:
        config: of the critics.
        copies: T.
        rows: shape of the rows, e.g. `(B, K)` for K actions in each of B states.
        generator: also says the device.

    Returns:
        For each hidden layer `(E, T, *rows, H)`; empty without dropout.
    """
    if not config.dropout:
        return []
    shapes = [(config.heads, copies, *rows, width) for width in config.hidden]
    return [_mask(shape, config.dropout, generator) for shape in shapes]


def _mask(shape: Sequence[int], dropout: float, generator: torch.Generator) -> Tensor:
    """Return 0 with probability `dropout` (to 1 / 65536), else `1 / (1 - dropout)`.

    One random word makes four entries: drawing is the dearest part of an update, and this takes a
    third of the time of `bernoulli_`.
    """
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=generator.device)
    entries = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
    kept = entries >= round(dropout * 2**16) - 2**15
    return kept.to(torch.float32).div_(1.0 - dropout).view(*shape)


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance over the copies, `(E, N)` each.

    The variance is that of the model alone (Gal and Ghahramani 2016, without their noise term).
    With one copy nothing is known of it, and it is 0.

    Args:
        values: `(E, T, N)`.

    Example:
        >>> mean, variance = moments(torch.tensor([[[1.0], [3.0]]]))
        >>> mean.item(), variance.item()
        (2.0, 2.0)
    """
    if values.shape[1] == 1:
        return values[:, 0], torch.zeros_like(values[:, 0])
    return values.mean(1), values.var(1)


def candidate_moments(
    critics: Critics, observations: Tensor, actions: Tensor, masks: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the critics for K actions in each state, `(E, B, K)` each.

    Args:
        critics: E critics.
        observations: `(B, O)`.
        actions: `(B, K, A)`.
        masks: for B * K rows, see `masks_of`.
    """
    rows, candidates = actions.shape[:2]
    repeated = observations[:, None].expand(-1, candidates, -1).flatten(0, 1)
    mean, variance = moments(critics(repeated, actions.flatten(0, 1), masks))
    return mean.unflatten(1, (rows, candidates)), variance.unflatten(1, (rows, candidates))
