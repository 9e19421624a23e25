"""Dropout by bytes: rate, scale, gradient, seeds."""

from __future__ import annotations

import pytest
import torch

from graftwork._errors import ConfigError
from graftwork.nn import ByteDropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_is_a_multiple_of_a_256th_and_the_mean_is_kept(rate: float) -> None:
    torch.manual_seed(0)
    drop, exact = ByteDropout(rate), round(256 * rate) / 256
    out = drop(torch.ones(999_999))
    assert float((out == 0).float().mean()) == pytest.approx(exact, abs=0.003)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - exact)])
    assert float(out.mean()) == pytest.approx(1.0, abs=0.01)
    by_byte = (out[:999_992] == 0).view(-1, 8).float().mean(0)
    assert float((by_byte - exact).abs().max()) < 0.01


def test_gradient_is_that_of_the_coins_and_the_seed_gives_them() -> None:
    drop = ByteDropout(0.4)
    x = torch.randn(7, 13, requires_grad=True)
    torch.manual_seed(3)
    out = drop(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient * x.detach(), out.detach())
    torch.manual_seed(3)
    assert torch.equal(drop(x), out)


def test_off_in_evaluation_and_at_rate_zero() -> None:
    x = torch.randn(4)
    assert ByteDropout(0.5).eval()(x) is x
    assert ByteDropout(0.0)(x) is x
    assert ByteDropout(0.001)(x) is x, "below half of a 256th"
    assert ByteDropout(0.5)(x.bfloat16()).dtype == torch.bfloat16
    assert ByteDropout(0.5)(torch.ones(0)).shape == (0,)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_rates(rate: float) -> None:
    with pytest.raises(ConfigError, match="a dropout rate"):
        ByteDropout(rate)
