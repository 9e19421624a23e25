"""The batched discrepancy against loops over pairs."""

import math

import pytest
import torch

from graftwork.errors import InputError, UnknownNameError
from graftwork.objectives import mmd


def naive(x, y, kernel, sigma):
    def k(u, v):
        gaps = [abs(a - b) for a, b in zip(u, v, strict=True)]
        far = sum(g * g for g in gaps) if kernel == "gaussian" else sum(gaps)
        return math.exp(-far / (2 * sigma))

    def mean(us, vs):
        return sum(k(u, v) for u in us for v in vs) / (len(us) * len(vs))

    return math.sqrt(mean(x, x) + mean(y, y) - 2 * mean(x, y) + 1e-6)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
@pytest.mark.parametrize("sigma", [0.5, 20.0])
def test_equals_loops_over_pairs(kernel, sigma):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64) + 0.5
    found = mmd(x, y, kernel=kernel, sigma=sigma)
    for i in range(3):
        assert found[i].item() == pytest.approx(
            naive(x[i].tolist(), y[i].tolist(), kernel, sigma), rel=1e-12
        )


def test_gradient_is_that_of_differences_and_finite_for_equal_sets():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: mmd(y, t, sigma=2.0), (x,))
    same = y.clone().requires_grad_()
    mmd(y, same).sum().backward()
    assert same.grad is not None
    assert bool(torch.isfinite(same.grad).all())


def test_bad_arguments_are_named():
    x = torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"not \(2, 3\) and \(2, 4\)"):
        mmd(x, torch.zeros(2, 4))
    with pytest.raises(InputError, match="sigma is above 0"):
        mmd(x, x, sigma=0.0)


@pytest.mark.usefixtures("untyped")
def test_an_unknown_kernel_is_named():
    x = torch.zeros(2, 3)
    with pytest.raises(UnknownNameError, match="did you mean 'gaussian'"):
        mmd(x, x, kernel="gausian")
