"""The head and the other port modules."""

from __future__ import annotations

import pytest
import torch

from graftwork._errors import ConfigError, UnknownNameError
from graftwork.nn import Bottleneck, Head, InputEmbedder, Prompt


def test_linear_head_is_one_matrix() -> None:
    head = Head(5, 3)
    x = torch.randn(4, 5)
    assert [n for n, _ in head.named_parameters()] == ["out.weight", "out.bias"]
    assert torch.equal(head(x), x @ head.out.weight.T + head.out.bias)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "identity"])
def test_hidden_head_applies_its_activation(activation: str) -> None:
    head = Head(5, 3, hidden=7, activation=activation)
    functions = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}
    x = torch.randn(4, 5)
    middle = x @ head.hidden.weight.T + head.hidden.bias
    middle = functions.get(activation, lambda t: t)(middle)
    torch.testing.assert_close(head(x), middle @ head.out.weight.T + head.out.bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_head_computes_in_the_wider_type(dtype: torch.dtype) -> None:
    out = Head(5, 3, hidden=4)(torch.ones(2, 5, dtype=dtype))
    assert out.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("sizes", [(0, 2, 0), (2, 0, 0), (2, 2, -1)])
def test_head_refuses_impossible_sizes(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="a head needs"):
        Head(*sizes)


def test_head_refuses_dropout_of_one() -> None:
    with pytest.raises(ConfigError, match="dropout must be in"):
        Head(2, 2, dropout=1.0)


@pytest.mark.usefixtures("untyped")
def test_head_refuses_an_unknown_activation() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'tanh'"):
        Head(2, 2, hidden=2, activation="tan")


def test_prompt_comes_first() -> None:
    prompt, embedded = Prompt(2, 4), torch.randn(3, 5, 4)
    out = prompt(embedded)
    assert torch.equal(out[:, 2:], embedded)
    assert torch.equal(out[1, :2], prompt.vectors)


def test_bottleneck_starts_as_identity_and_keeps_the_type() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.bfloat16)
    out = Bottleneck(4, 2)(x)
    assert torch.equal(out, x)
    assert out.dtype == x.dtype


def test_input_embedder_maps_width() -> None:
    assert InputEmbedder(3, 6)(torch.zeros(2, 5, 3)).shape == (2, 5, 6)


@pytest.mark.parametrize("make", [lambda: Prompt(0, 4), lambda: Bottleneck(4, 0)])
def test_ports_refuse_impossible_sizes(make) -> None:
    with pytest.raises(ConfigError, match=">= 1, not 0"):
        make()
