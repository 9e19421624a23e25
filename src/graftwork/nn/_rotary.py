"""Rotary positions: queries and keys turned by an angle that grows with their position.

Shape legend: B rows, H heads, L positions, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork._errors import ConfigError


def rotary(x: Tensor, *, base: float = 10000.0, first: int = 0) -> Tensor:
    """Turn each pair of dimensions (i, i + D/2) of position t by the angle t * base**(-2i/D).

    With the pairs as complex numbers, `x_t -> x_t * exp(1j * t * theta)`, so the product of a
    query at m and a key at n depends on their contents and m - n only (Su et al., 2021, section
    3.2.2). Su et al. pair neighbours (2i, 2i + 1); the halves are paired here, as in MoLFormer
    (Ross et al., 2021) and most published checkpoints. The two differ by a fixed permutation of
    the dimensions.

    Args:
        x: `(..., L, D)` queries or keys, D even.
        base: the slowest pair turns once in about `2 * pi * base` positions; 10000 as published.
        first: position of the first entry, for text that goes on.

    Returns:
        `(..., L, D)` in the type of `x`; the angles are computed in float32 or wider.

    Raises:
        ConfigError: D is odd.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> [round(v, 3) for v in rotary(x)[1].tolist()]
        [0.54, 0.841]
    """
    width = x.shape[-1]
    if width % 2:
        raise ConfigError(
            f"rotary positions pair dimensions, so a head's width must be even: {width}"
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    # the angles in float64: at float32, position 1000 is off by 1e-4 already
    rates = base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=x.device) / width)
    places = torch.arange(first, first + x.shape[-2], dtype=torch.float64, device=x.device)
    angles = torch.outer(places, rates)
    cosine, sine = angles.cos().to(wide), angles.sin().to(wide)
    cosines, sines = torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)
    # whole rows and rows with exchanged halves: half the time of halves that are joined at the end
    x_wide = x.to(wide)
    turned = torch.addcmul(x_wide * cosines, x_wide.roll(width // 2, dims=-1), sines)
    # heads come as views with strides, which the product with Omega would take one by one
    return turned.to(x.dtype).contiguous()
