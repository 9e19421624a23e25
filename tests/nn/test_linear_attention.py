"""Linear attention, random features and rotary positions against independent forms."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from graftwork._errors import ConfigError, UnknownNameError
from graftwork.nn import (
    RandomFeatures,
    attention_weights,
    linear_attention,
    orthogonal_features,
    rotary,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """One query at a time, as the formula is written."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                above, below = torch.zeros(v.shape[-1], dtype=q.dtype), 1e-6
                for j in range(i + 1 if causal else k.shape[2]):
                    weight = float((q[b, h, i] * k[b, h, j]).sum())
                    weight *= 1.0 if mask is None else float(mask[b, j])
                    above, below = above + weight * v[b, h, j], below + weight
                out[b, h, i] = above / below
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 5, 70])
def test_equals_the_quadratic_form(dtype: torch.dtype, causal: bool, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    q, k = torch.rand(2, 2, 2, length, 6, generator=generator, dtype=dtype)
    v = torch.randn(2, 2, length, 4, generator=generator, dtype=dtype)
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, length // 2 + 1 :] = 0
    for chosen in (None, mask):
        found = linear_attention(q, k, v, chosen, causal=causal)
        expected = naive(q, k, v, chosen, causal)
        assert (found - expected).abs().max() < TOLERANCE[dtype]
        weights = attention_weights(q, k, chosen, causal=causal)
        assert (weights @ v - expected).abs().max() < TOLERANCE[dtype]


def test_causal_gradients_equal_those_of_the_masked_quadratic_form() -> None:
    torch.manual_seed(0)
    inputs = [torch.rand(1, 2, 130, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]
    grads = torch.autograd.grad(linear_attention(*inputs, causal=True).pow(2).sum(), inputs)
    weights = attention_weights(*inputs[:2], causal=True)
    expected = torch.autograd.grad((weights @ inputs[2]).pow(2).sum(), inputs)
    for found, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_a_query_without_features_gives_zero_not_nan() -> None:
    q, k, v = torch.zeros(1, 1, 2, 3), torch.rand(1, 1, 2, 3), torch.rand(1, 1, 2, 3)
    assert torch.equal(linear_attention(q, k, v), torch.zeros(1, 1, 2, 3))
    nothing = torch.zeros(1, 2)
    assert torch.equal(linear_attention(k, k, v, nothing), torch.zeros(1, 1, 2, 3))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_rotary_equals_complex_rotation(dtype: torch.dtype, bound: float) -> None:
    x = torch.randn(3, 50, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found = rotary(x, first=7)
    for row in range(3):
        for t in range(50):
            for i in range(4):
                pair = complex(float(x[row, t, i]), float(x[row, t, i + 4]))
                turned = pair * cmath.exp(1j * (t + 7) * 10000.0 ** (-2 * i / 8))
                assert abs(float(found[row, t, i]) - turned.real) < bound
                assert abs(float(found[row, t, i + 4]) - turned.imag) < bound


def test_rotary_products_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    queries, keys = rotary(q.expand(30, 16)), rotary(k.expand(30, 16))
    products = queries @ keys.T
    for distance in range(-20, 21):
        line = products.diagonal(distance)
        assert (line - line[0]).abs().max() < 1e-12


def test_rotary_needs_an_even_width() -> None:
    with pytest.raises(ConfigError, match="must be even: 5"):
        rotary(torch.zeros(2, 5))


def test_rotary_keeps_the_type() -> None:
    x = torch.randn(4, 8)
    half = rotary(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), rotary(x), rtol=0.02, atol=0.02)


def test_features_are_orthogonal_within_a_block_and_as_long_as_normal_vectors() -> None:
    torch.manual_seed(0)
    omega = orthogonal_features(16, 40)
    for block in omega.split(16, dim=1):
        products = block.T @ block
        assert (products - products.diag().diag()).abs().max() < 1e-4
    lengths = orthogonal_features(16, 16 * 500).pow(2).sum(0)
    assert abs(float(lengths.mean()) - 16) < 0.3
    assert abs(float(lengths.var()) - 32) < 3


def test_features_estimate_the_arc_cosine_kernel() -> None:
    """Cho and Saul (2009): E[relu(w x) relu(w y)] = |x||y| (sin a + (pi - a) cos a) / (2 pi)."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 8, dtype=torch.float64)
    phi = RandomFeatures(8, 200_000, redraw="never").double()
    found = float(phi(x) @ phi(y)) / 200_000
    size = float(x.norm() * y.norm())
    angle = math.acos(float(x @ y) / size)
    expected = size * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("redraw", "in_training", "in_evaluation"),
    [("never", False, False), ("training", True, False), ("always", True, True)],
)
def test_redraw_says_when_omega_changes(
    redraw: str, in_training: bool, in_evaluation: bool
) -> None:
    phi, x = RandomFeatures(8, 8, redraw=redraw), torch.randn(4, 8)
    stored = phi.omega.clone()
    for training, changes in ((True, in_training), (False, in_evaluation)):
        phi.train(training)
        assert torch.equal(phi(x), phi(x)) is not changes
    assert torch.equal(phi.omega, stored)


def test_random_features_refuse_bad_sizes() -> None:
    with pytest.raises(ConfigError, match="positive sizes, not 8 and 0"):
        RandomFeatures(8, 0)


@pytest.mark.usefixtures("untyped")
def test_random_features_refuse_an_unknown_redraw() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'always'"):
        RandomFeatures(8, 8, redraw="allways")
