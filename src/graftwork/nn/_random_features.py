"""Generalised random features: a kernel as the product of two feature vectors.

Shape legend: D width of a head, F features.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from graftwork._errors import ConfigError, UnknownNameError

Redraw = Literal["never", "training", "always"]


def orthogonal_features(
    width: int, features: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw `(width, features)` normal columns that are orthogonal within blocks of `width`.

    Each column's distribution is that of a standard normal vector: a column of a random rotation,
    scaled by the length of a fresh normal vector. Orthogonal columns estimate a kernel with less
    variance than independent ones (Yu et al., 2016; Choromanski et al., 2021, section 2.4).

    Args:
        width: D.
        features: F.
        generator: where the numbers come from; torch's own when None.

    Example:
        >>> omega = orthogonal_features(4, 4)
        >>> bool((omega.T @ omega - (omega.T @ omega).diag().diag()).abs().max() < 1e-5)
        True
    """
    blocks = math.ceil(features / width)
    normal = torch.randn(blocks, width, width, generator=generator)
    directions, upper = torch.linalg.qr(normal)
    # QR leaves signs open; with those of R's diagonal the rotations are uniform (Mezzadri, 2007)
    directions = directions * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    lengths = torch.randn(width, features, generator=generator).norm(dim=0)
    columns: Tensor = directions.transpose(0, 1).reshape(width, -1)[:, :features]
    # contiguous, as it comes back from a file: a product's last bits depend on the layout
    scaled: Tensor = (columns * lengths).contiguous()
    return scaled


class RandomFeatures(nn.Module):
    """The feature map `phi(x) = relu(x Omega)` of MoLFormer (Ross et al., 2021).

    For Omega with normal columns, `phi(x) . phi(y) / F` estimates half the arc-cosine kernel of
    order 1 (Cho and Saul, 2009, equation 6). `x` is not scaled ("softmax temperature 1").

    The published code draws Omega anew at every call, in evaluation too, which makes predictions
    random. Here evaluation uses the stored Omega unless `redraw` is "always". A fresh Omega never
    overwrites the stored one, so a forward pass changes no buffer.

    Args:
        width: D.
        features: F; 32 in MoLFormer, where fast-transformers' `n_dims` is halved once more than
            its name suggests.
        redraw: "never"; "training": each call in training mode takes a fresh Omega from torch's
            generator; "always": each call does, as published.

    Raises:
        ConfigError: a size is not positive.
        UnknownNameError: no such `redraw`.
    """

    omega: Tensor

    def __init__(self, width: int, features: int = 32, redraw: Redraw = "training") -> None:
        super().__init__()
        if min(width, features) < 1:
            raise ConfigError(f"random features need positive sizes, not {width} and {features}")
        if redraw not in get_args(Redraw):
            raise UnknownNameError("redraw", redraw, get_args(Redraw))
        self.redraw = redraw
        self.register_buffer("omega", orthogonal_features(width, features))

    def draw(self) -> Tensor:
        """Return the `(D, F)` Omega of one call; queries and keys must share it."""
        if self.redraw == "always" or (self.redraw == "training" and self.training):
            return orthogonal_features(*self.omega.shape).to(self.omega)
        return self.omega

    def forward(self, x: Tensor, omega: Tensor | None = None) -> Tensor:
        """Map `(..., D)` to `(..., F)`, each entry >= 0."""
        chosen = self.draw() if omega is None else omega
        return torch.relu(x @ chosen.to(x.dtype))
