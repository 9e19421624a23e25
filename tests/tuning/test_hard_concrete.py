"""Gates against closed forms, quadrature and autograd."""

from __future__ import annotations

import math

import pytest
import torch

from graftwork._errors import ConfigError
from graftwork.tuning import HardConcrete
from graftwork.tuning._uniform import UniformStream

STRETCHES = [(-1.5, 1.5), (-0.1, 1.1), (-0.3, 2.0)]


def uniforms(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("low", "high"), STRETCHES)
@pytest.mark.parametrize("alpha", [-6.0, -1.0, 0.0, 0.7, 5.0])
def test_probabilities_match_large_samples(low, high, alpha):
    gate = HardConcrete(low, high)
    logit = torch.full((400_000,), alpha, dtype=torch.float64)
    z = gate.sample(logit, uniforms(400_000))
    on = 1 / (1 + math.exp(-(alpha - math.log(-low / high))))
    one = 1 / (1 + math.exp(-(alpha - math.log((1 - low) / (high - 1)))))
    assert gate.on(logit[0]).item() == pytest.approx(on, rel=1e-12)
    assert gate.one(logit[0]).item() == pytest.approx(one, rel=1e-12)
    assert (z > 0).double().mean().item() == pytest.approx(on, abs=4 * 0.5 / 632)
    assert (z == 1).double().mean().item() == pytest.approx(one, abs=4 * 0.5 / 632)


@pytest.mark.parametrize("alpha", [-3.0, 0.0, 2.0])
def test_mean_matches_quadrature(alpha):
    gate = HardConcrete()
    n = 200_000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # midpoint rule over u
    exact = gate.sample(torch.full((n,), alpha, dtype=torch.float64), grid).mean().item()
    sampled = gate.sample(torch.full((n,), alpha, dtype=torch.float64), uniforms(n)).mean().item()
    assert sampled == pytest.approx(exact, abs=4 * 0.5 / math.sqrt(n))


def test_stretch_of_the_paper():
    gate = HardConcrete()
    alpha = torch.linspace(-8, 8, 33, dtype=torch.float64)
    torch.testing.assert_close(gate.on(alpha), torch.sigmoid(alpha), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        gate.one(alpha), torch.sigmoid(alpha - math.log(5)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(("low", "high"), STRETCHES)
def test_slope_is_what_autograd_says(low, high):
    gate = HardConcrete(low, high)
    alpha = torch.linspace(-4, 4, 5001, dtype=torch.float64, requires_grad=True)
    z = gate.sample(alpha, uniforms(5001))
    (expected,) = torch.autograd.grad(z.sum(), alpha)
    torch.testing.assert_close(gate.slope(z.detach()), expected, rtol=1e-9, atol=1e-12)


def test_settled_gate_is_the_median_draw():
    gate = HardConcrete()
    alpha = torch.linspace(-4, 4, 101)
    torch.testing.assert_close(gate.settled(alpha), gate.sample(alpha, torch.full((101,), 0.5)))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.1, 1.5, "low < 0"), (-1.5, 1.0, "high > 1"), (-1.0, math.inf, "fin")],
)
def test_a_stretch_that_never_reaches_an_end_is_an_error(low, high, said):
    with pytest.raises(ConfigError, match=said):
        HardConcrete(low, high)


def test_uniform_stream_is_uniform_clamped_and_a_function_of_its_seed():
    device = torch.device("cpu")
    u = UniformStream(7, device).into(torch.empty(300_001))
    assert u.min() >= 1e-4
    assert u.max() <= 1 - 1e-4
    expected = torch.arange(1, 10) / 10
    quantiles = torch.quantile(u.double()[::3], expected.double())
    torch.testing.assert_close(quantiles, expected.double(), rtol=0, atol=5e-3)
    assert abs(torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1]) < 0.01
    assert torch.equal(u, UniformStream(7, device).into(torch.empty(300_001)))
    other = UniformStream(8, device).into(torch.empty(300_001))
    assert abs(torch.corrcoef(torch.stack([u, other]))[0, 1]) < 0.01
