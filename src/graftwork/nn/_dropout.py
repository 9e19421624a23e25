"""Dropout whose coins are bytes, which cost a processor a twentieth of floats."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork._errors import ConfigError


class ByteDropout(nn.Module):
    """Set entries to 0 at random in training and scale the others up (Srivastava et al., 2014).

    On a CPU torch draws a float for each entry, which took 15 % of a pretraining step of MoLFormer.
    Here eight entries share a 64-bit word, so the rate is a multiple of 1/256: 0.1 becomes 26/256,
    and what is kept is scaled by 256/230, so that the mean stays exact. On other devices it is
    torch's own dropout.

    Args:
        rate: chance of an entry to be 0.

    Raises:
        ConfigError: the rate is outside [0, 1).

    Example:
        >>> drop = ByteDropout(0.5)
        >>> set(drop(torch.ones(100)).tolist()) == {0.0, 2.0}
        True
        >>> drop.eval()(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ConfigError(f"a dropout rate is in [0, 1), not {rate}")
        self.rate = rate
        self.dropped = min(round(256 * rate), 255)

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor of any shape to one of the same shape and type."""
        if not self.training or self.rate == 0.0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.rate)
        if self.dropped == 0:
            return x
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        coins = words.view(torch.uint8)[: x.numel()].view(x.shape)
        # 0 or 1 by arithmetic: torch compares bytes, and widens bools, an entry at a time
        kept = (coins.clamp_(self.dropped - 1, self.dropped) - (self.dropped - 1)).to(x.dtype)
        return x * kept.mul_(256 / (256 - self.dropped))

    def extra_repr(self) -> str:
        """Return the rate."""
        return f"rate={self.rate}"
