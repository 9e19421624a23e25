import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graftwork import deltas
from graftwork._errors import DeltaError, UnknownNameError

FLOATS = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("stored", [*FLOATS, "int8"])
@given(
    values=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=300),
        elements=st.floats(-60_000, 60_000, width=32, allow_subnormal=False),
        fill=st.nothing(),
    ),
    exponent=st.integers(-40, 0),
)
def test_rounding_twice_changes_no_bit(stored, values, exponent):
    tensor = torch.from_numpy(np.ascontiguousarray(np.ldexp(values, exponent)))
    once = deltas.quantise(tensor, stored)
    again = deltas.quantise(deltas.values_of(once), stored)
    assert deltas.values_of(once).shape == tensor.shape
    if stored == "int8":
        assert torch.equal(once.codes, again.codes)
        assert torch.equal(once.scales, again.scales)
    else:
        assert once.dtype == getattr(torch, stored)
        assert torch.equal(once, again)


@given(st.integers(0, 2**32 - 1), st.integers(1, 1000), st.floats(1e-20, 1e20))
def test_int8_error_is_at_most_half_a_step(seed, n, size):
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal(n)).float() * size
    back = deltas.values_of(deltas.quantise(values, "int8"))
    for start in range(0, n, deltas._terms.INT8_BLOCK):
        block = slice(start, start + deltas._terms.INT8_BLOCK)
        # a bfloat16 scale is off by at most 2^-8
        step = float(values[block].abs().max()) / 127 * (1 + 2**-8)
        assert float((values[block] - back[block]).abs().max()) <= step / 2 * (1 + 1e-5)


def test_int8_keeps_zero_and_tiny_blocks():
    assert deltas.quantise(torch.zeros(3), "int8").scales.tolist() == [0.0]
    gone = deltas.quantise(torch.full((2,), 1e-38), "int8")
    assert gone.codes.tolist() == [0, 0]
    assert gone.scales.tolist() == [0.0]


def test_float16_is_ieee_rounding():
    values = torch.randn(1000, dtype=torch.float64)
    expected = values.numpy().astype(np.float16)
    assert np.array_equal(deltas.quantise(values, "float16").numpy(), expected)


def test_result_is_a_copy_without_gradient():
    parameter = torch.nn.Parameter(torch.ones(3, 2).t().contiguous().t())
    rounded = deltas.quantise(parameter, "float32")
    assert not rounded.requires_grad
    assert rounded.is_contiguous()
    with torch.no_grad():
        parameter.zero_()
    assert rounded.sum() == 6


@pytest.mark.parametrize("stored", [*FLOATS, "int8"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_an_error(stored, bad):
    with pytest.raises(DeltaError, match="NaN or infinity"):
        deltas.quantise(torch.tensor([1.0, bad]), stored)


@pytest.mark.parametrize(("stored", "value"), [("float16", 7e4), ("int8", 1e39)])
def test_too_large_values_are_an_error_with_the_fix(stored, value):
    with pytest.raises(DeltaError, match=f"too large for {stored}; store as bfloat16"):
        deltas.quantise(torch.tensor([value], dtype=torch.float64), stored)


def test_unknown_type_and_integers_are_errors():
    with pytest.raises(UnknownNameError, match="did you mean 'float16'"):
        deltas.quantise(torch.ones(1), "float_16")
    with pytest.raises(DeltaError, match="must be floating"):
        deltas.quantise(torch.ones(1, dtype=torch.int64), "float16")
