"""A linear layer that promotes instead of failing on mixed types."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PromotingLinear(nn.Linear):
    """`nn.Linear` with a bias that computes in the wider of the input's and the weight's type.

    A port keeps its values in float32 while its base may run in bfloat16 or float64; `nn.Linear`
    refuses that mixture. Under autocast the usual rules hold.

    Example:
        >>> PromotingLinear(4, 2)(torch.ones(3, 4, dtype=torch.float64)).dtype
        torch.float64
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=True)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        dtype = torch.promote_types(input.dtype, self.weight.dtype)
        return F.linear(input.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
