"""The head: features to logits or values."""

from __future__ import annotations

from torch import Tensor, nn

from graftwork._errors import ConfigError
from graftwork.nn._activations import Activation, activation_module
from graftwork.nn._linear import PromotingLinear


class Head(nn.Module):
    """Map features to outputs: linear, or with one hidden layer.

    Args:
        in_features: width of the features.
        out_features: labels, or 1 for regression.
        hidden: units of the hidden layer; 0 means none. On [u, v, |u-v|, u*v] of a frozen
            encoder a linear head learns far slower than 64 tanh units.
        activation: after the hidden layer; tanh keeps early steps small.
        dropout: on the input of the last layer.

    Raises:
        ConfigError: a size or the dropout is out of range.

    Example:
        >>> import torch
        >>> Head(8, 3, hidden=4)(torch.zeros(2, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: int = 0,
        activation: Activation = "tanh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(in_features, out_features) < 1 or hidden < 0:
            raise ConfigError(
                f"a head needs in_features >= 1, out_features >= 1 and hidden >= 0, "
                f"not {in_features}, {out_features} and {hidden}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"a head's dropout must be in [0, 1), not {dropout}")
        self.hidden = PromotingLinear(in_features, hidden) if hidden else None
        self.activation = activation_module(activation)
        self.dropout = nn.Dropout(dropout)
        self.out = PromotingLinear(hidden or in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        if self.hidden is not None:
            features = self.activation(self.hidden(features))
        out: Tensor = self.out(self.dropout(features))
        return out
