"""Frozen weights held in 8 bits: what they mean, and a linear layer that runs them.

Such a weight is torchao's `Int8Tensor`, which `graftwork.bases.load(..., quantise="int8")` makes:
int8 values q and one float32 scale s a row. Everywhere it means the matrix `W = s * q`, rounded to
the parameter's floating type, and `float_of` is the one place that computes it. So a base in 8 bits
IS the base with those matrices, to the bit, and the one equation holds for it as it stands.

The operations of torchao's tensor are left alone: its `.to(dtype)` and `.float()` give back the
same 8 bits in the same type without a word, and its layer keeps a floating copy of every weight
from the forward to the backward pass, which is the memory that 8 bits were to save.

Shape legend: x `(..., k)`, W `(m, k)`, y `(..., m)`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUANTISE = "quantise"
"""Key of `Fingerprint.processing` under which a base in 8 bits says "int8"."""


def is_int8(tensor: object) -> bool:
    """Return whether a parameter is held in 8 bits, without importing torchao to know.

    Example:
        >>> is_int8(torch.zeros(2, dtype=torch.int8))
        False
    """
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    library = sys.modules.get("torchao.quantization")
    return library is not None and isinstance(tensor, library.Int8Tensor)


def float_of(parameter: Tensor) -> Tensor:
    """Return the numbers that a frozen parameter stands for: itself, or `s * q` of one in 8 bits.

    The result of a parameter in 8 bits is made anew at each call, so writing to it changes nothing.

    Example:
        >>> weight = torch.ones(2, 2)
        >>> float_of(weight) is weight
        True
    """
    if not is_int8(parameter):
        return parameter
    held: Any = parameter
    # a third faster than a product of mixed types, of the same bits
    product: Tensor = held.qdata.to(held.scale.dtype).mul_(held.scale)
    return product.to(parameter.dtype)


def held_by(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors whose memory holds `tensor`: itself, or values and scales in 8 bits."""
    if not is_int8(tensor):
        return (tensor,)
    held: Any = tensor
    parts = (held.qdata, held.scale, held.zero_point)
    return tuple(part for part in parts if part is not None)


def why_unsupported(tensor: Tensor) -> str | None:
    """Return what stands against adapting a module with this parameter, or None.

    A parameter that is no plain one belongs to a quantiser. Of those, only symmetric int8 values
    with one scale a row, and activations as they are, mean one matrix.
    """
    if not isinstance(tensor, nn.Parameter) or type(tensor) is nn.Parameter:
        return None
    name = type(tensor).__name__
    held: Any = tensor
    if not is_int8(tensor):
        return f"a {name} (packed by a quantiser?)"
    if held.act_quant_kwargs is not None or held.act_pre_scale is not None:
        return f"a {name} that quantises activations too"
    if held.dim() != 2 or tuple(held.scale.shape) != (held.shape[0], 1):
        return f"a {name} with {tuple(held.scale.shape)} scales for the shape {tuple(held.shape)}"
    if held.zero_point is not None and bool(held.zero_point.any()):
        return f"a {name} with zero points"
    return None


class Int8Linear(nn.Linear):
    """A linear layer whose weight is held in 8 bits; a computed, floating weight runs as ever."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `x W^T + bias`."""
        return run_linear(input, self.weight, self.bias)


def run_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x W^T + bias` of a weight that may be held in 8 bits.

    The bits are those of `F.linear` with `float_of(weight)`, which exists during the call only: the
    backward pass makes it again.
    """
    if not is_int8(weight):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    """`F.linear` that keeps the 8 bits for its backward pass, not the matrix made of them."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output."""
        return F.linear(x, float_of(weight), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the base's own weight, and the input only where the weight wants a gradient."""
        del output
        x, ctx.weight, _ = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that are wanted."""
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        to_x = gradient @ float_of(ctx.weight).to(gradient.dtype) if wants_x else None
        to_weight = None
        if wants_weight:
            x = ctx.saved_tensors[0]
            to_weight = rows.t() @ x.reshape(-1, x.shape[-1]).to(rows.dtype)
        return to_x, to_weight, rows.sum(0) if wants_bias else None
