"""Small modules that a delta may add at a place of the base: prompt, bottleneck, input embedder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graftwork._errors import ConfigError
from graftwork.nn._activations import Activation, activation_module
from graftwork.nn._linear import PromotingLinear


def _positive(what: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{what} needs {name} >= 1, not {size}")


class Prompt(nn.Module):
    """Trainable vectors put before the embedded input (Lester et al., 2021, section 2).

    Args:
        length: number of vectors.
        width: the base's embedding width.
        deviation: standard deviation of the initial vectors; that of BERT-like embeddings.

    Raises:
        ConfigError: a size is not positive.

    Example:
        >>> Prompt(2, 8)(torch.zeros(3, 5, 8)).shape
        torch.Size([3, 7, 8])
    """

    def __init__(self, length: int, width: int, deviation: float = 0.02) -> None:
        super().__init__()
        _positive("a prompt", length=length, width=width)
        self.vectors = nn.Parameter(torch.randn(length, width) * deviation)

    def forward(self, embedded: Tensor) -> Tensor:
        """Map embedded inputs `(B, T, width)` to `(B, length + T, width)`."""
        vectors = self.vectors.to(embedded.dtype).expand(embedded.shape[0], -1, -1)
        return torch.cat((vectors, embedded), dim=1)


class Prefix(nn.Module):
    """Trainable keys and values before those of the input, in every attention layer.

    Prefix tuning (Li and Liang, 2021, section 4.2), trained as they are: their reparametrisation by
    a network is left out, as it is dropped after training.

    Args:
        layers: attention layers.
        heads: key and value heads of a layer.
        length: keys and values added.
        width: width of a head.
        deviation: standard deviation of the initial values.

    Raises:
        ConfigError: a size is not positive.

    Example:
        >>> Prefix(layers=2, heads=4, length=3, width=8)(torch.zeros(5, 7)).shape
        torch.Size([2, 2, 5, 4, 3, 8])
    """

    def __init__(
        self, layers: int, heads: int, length: int, width: int, deviation: float = 0.02
    ) -> None:
        super().__init__()
        _positive("a prefix", layers=layers, heads=heads, length=length, width=width)
        self.vectors = nn.Parameter(torch.randn(layers, 2, heads, length, width) * deviation)

    def forward(self, rows: Tensor) -> Tensor:
        """Return keys and values `(layers, 2, B, heads, length, width)` for inputs `(B, ...)`."""
        return self.vectors.unsqueeze(2).expand(-1, -1, rows.shape[0], -1, -1, -1)


class Bottleneck(nn.Module):
    """A residual adapter, `x + up(activation(down(x)))` (Houlsby et al., 2019, figure 2).

    `up` starts at zero, so that the adapted base starts as the base.

    Args:
        width: width of the stream it is put into.
        size: width of the bottleneck.
        activation: between the projections; the paper leaves it open, gelu suits transformers.

    Raises:
        ConfigError: a size is not positive.
    """

    def __init__(self, width: int, size: int, activation: Activation = "gelu") -> None:
        super().__init__()
        _positive("a bottleneck", width=width, size=size)
        self.down = PromotingLinear(width, size)
        self.activation = activation_module(activation)
        self.up = PromotingLinear(size, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., width)` to `(..., width)`, in the type of `x`."""
        added: Tensor = self.up(self.activation(self.down(x)))
        return x + added.to(x.dtype)


class InputEmbedder(nn.Module):
    """A linear map of foreign features to the base's embedding width.

    Args:
        in_features: width of the features of one position.
        width: the base's embedding width.

    Raises:
        ConfigError: a size is not positive.
    """

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        _positive("an input embedder", in_features=in_features, width=width)
        self.projection = PromotingLinear(in_features, width)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, T, in_features)` to `(B, T, width)`."""
        out: Tensor = self.projection(features)
        return out
