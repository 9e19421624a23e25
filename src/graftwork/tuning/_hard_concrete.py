"""Stretched hard-concrete gates: closed forms, and the sample that training draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork._errors import ConfigError

U_MIN = 1e-4
"""Uniform draws are clamped to [U_MIN, 1 - U_MIN] (Guo et al. 2020, appendix)."""


@dataclass(frozen=True, slots=True)
class HardConcrete:
    """The distribution of one gate z in [0, 1] with logit alpha (Louizos, Welling, Kingma, 2018).

        u ~ U(0, 1);  s = sigmoid(log u - log(1 - u) + alpha);  z = clamp(s (r - l) + l, 0, 1)

    Attributes:
        low: l < 0.
        high: r > 1. The paper's -1.5 and 1.5 make P(z > 0) = sigmoid(alpha).

    Raises:
        ConfigError: the stretch does not reach beyond [0, 1].

    Example:
        >>> gate = HardConcrete()
        >>> alpha = torch.tensor([5.0, 0.0, -5.0])
        >>> gate.on(alpha)
        tensor([0.9933, 0.5000, 0.0067])
        >>> gate.settled(alpha)
        tensor([1., 0., 0.])
    """

    low: float = -1.5
    high: float = 1.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ConfigError(f"low and high must be finite, not {self.low} and {self.high}")
        if not self.low < 0.0 or not self.high > 1.0:
            raise ConfigError(
                f"gates need low < 0 and high > 1, not {self.low} and {self.high}; else a gate "
                "is never exactly 0 or 1"
            )

    @property
    def offset(self) -> float:
        """log(-l / r): a gate is open when its logit plus noise is above this; 0 in the paper."""
        return math.log(-self.low / self.high)

    def sample(self, alpha: Tensor, u: Tensor) -> Tensor:
        """Return gates for logits `alpha` and uniforms `u`, both of one shape; differentiable."""
        u = u.clamp(U_MIN, 1.0 - U_MIN)
        s = torch.sigmoid(u.log() - (-u).log1p() + alpha)
        return (s * (self.high - self.low) + self.low).clamp(0.0, 1.0)

    def settled(self, alpha: Tensor) -> Tensor:
        """Return the deterministic gates: u = 1/2, the median draw."""
        s = torch.sigmoid(alpha)
        return (s * (self.high - self.low) + self.low).clamp(0.0, 1.0)

    def on(self, alpha: Tensor) -> Tensor:
        """Return P(z > 0) = sigmoid(alpha - log(-l / r)) (eq. 5 of Guo et al. 2020)."""
        return torch.sigmoid(alpha - self.offset)

    def one(self, alpha: Tensor) -> Tensor:
        """Return P(z = 1) = sigmoid(alpha - log((1 - l) / (r - 1)))."""
        return torch.sigmoid(alpha - math.log((1.0 - self.low) / (self.high - 1.0)))

    def slope(self, gates: Tensor) -> Tensor:
        """Return dz / dalpha from z alone: (z - l)(r - z) / (r - l) for 0 < z < 1, else 0.

        It is (r - l) s (1 - s) with s = (z - l) / (r - l).
        """
        inside = (gates > 0) & (gates < 1)
        return inside * (gates - self.low) * (self.high - gates) / (self.high - self.low)
