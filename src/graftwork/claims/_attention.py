"""Instruments of the claim `molformer`: linear attention and rotary positions, checked exactly.

Shape legend: B rows, H heads, L positions, F features, D width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from graftwork.nn import RandomFeatures, linear_attention, rotary

LENGTHS = (1024, 2048, 4096, 8192)


def quadratic_error(dtype: torch.dtype, seed: int) -> float:
    """Return the worst |linear attention - its quadratic form|, causal and not, masked and not."""
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for length in (1, 63, 64, 65, 200):
        q, k = torch.rand(2, 2, 3, length, 8, generator=generator, dtype=dtype)
        v = torch.randn(2, 3, length, 5, generator=generator, dtype=dtype)
        mask = (torch.rand(2, length, generator=generator) < 0.8).to(dtype)
        for causal in (False, True):
            for chosen in (None, mask):
                found = linear_attention(q, k, v, chosen, causal=causal)
                expected = _quadratic(q, k, v, chosen, causal)
                worst = max(worst, float((found - expected).abs().max()))
    return worst


def _quadratic(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    weights = torch.einsum("bhlf,bhsf->bhls", q, k)
    if mask is not None:
        weights = weights * mask[:, None, None, :]
    if causal:
        length = weights.shape[-1]
        later = torch.arange(length)[None, :] > torch.arange(length)[:, None]
        weights = weights.masked_fill(later, 0.0)
    return torch.einsum("bhls,bhsd->bhld", weights, v) / (weights.sum(-1, keepdim=True) + 1e-6)


def rotary_error(seed: int) -> float:
    """Return the worst |rotary - multiplication by a complex exponential| in float64."""
    x = torch.randn(4, 300, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    angles = torch.outer(
        torch.arange(300, dtype=torch.float64),
        torch.tensor([10000.0 ** (-2 * i / 32) for i in range(16)], dtype=torch.float64),
    )
    turned = torch.complex(x[..., :16], x[..., 16:]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    return float((rotary(x) - expected).abs().max())


def kernel_error(seed: int, features: int = 200_000) -> float:
    """Return how far the features' kernel is from half the arc-cosine kernel, as a share of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x, y = torch.randn(2, 16, dtype=torch.float64)
        phi = RandomFeatures(16, features, redraw="never").double()
        found = float(phi(x) @ phi(y)) / features
    size = float(x.norm() * y.norm())
    angle = math.acos(float(x @ y) / size)
    exact = size * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
    return abs(found / exact - 1)


def exponents(measure: Callable[[str, int], float], lengths: Sequence[int]) -> dict[str, float]:
    """Return for "linear" and "softmax" the slope of log cost over log length, by least squares."""
    x = [math.log(n) for n in lengths]
    middle = sum(x) / len(x)
    out = {}
    for kind in ("linear", "softmax"):
        y = [math.log(measure(kind, n)) for n in lengths]
        mean = sum(y) / len(y)
        above = sum((a - middle) * (b - mean) for a, b in zip(x, y, strict=True))
        out[kind] = above / sum((a - middle) ** 2 for a in x)
    return out


def operations(kind: str, length: int) -> float:
    """Return the floating-point operations of one attention, as torch counts them.

    It does not see into the fused kernel of softmax attention, so that is written out.
    """
    run = _attention(kind, length, fused=False)
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def seconds(kind: str, length: int) -> float:
    """Return the least processor time of five runs of one attention."""
    run = _attention(kind, length, fused=True)
    run()
    found = []
    for _ in range(5):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return min(found)


def _attention(kind: str, length: int, *, fused: bool) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(length)
    q, k, v = torch.randn(3, 1, 4, length, 32, generator=generator)
    phi = RandomFeatures(32, 32, redraw="never")
    if kind == "linear":
        return lambda: linear_attention(phi(q), phi(k), v)
    if not fused:
        return lambda: (q @ k.transpose(-1, -2) / math.sqrt(32)).softmax(-1) @ v
    return lambda: functional.scaled_dot_product_attention(q, k, v)
