"""Rounding values to the type they are stored in, before anything is measured (law 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork._errors import DeltaError, UnknownNameError
from graftwork.deltas._terms import INT8_BLOCK, Int8Blocks, Stored

FLOATS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""Stored types of plain tensors by name; "int8" is `Int8Blocks`."""

STORED = (*FLOATS, "int8")
"""Names of the stored types."""

_CODE_MAX = 127
_SCALE_MIN = 2.0**-126
"""Least normal bfloat16; blocks of values below 1e-36 are stored as zeros."""


def quantise(tensor: Tensor, stored: str) -> Stored:
    """Return `tensor` rounded to the type that a file keeps.

    Rounding is to nearest, ties to even. Rounding twice changes nothing: for `q = quantise(t, s)`,
    `quantise(values_of(q), s)` has the bits of `q`.

    Arguments:
        tensor: floating values of any shape and device; all finite.
        stored: "float16" (the default elsewhere: 2 bytes, 11 bits of precision), "bfloat16",
            "float32", "float64", or "int8" (1 byte and a bfloat16 scale for each 256 values).

    Returns:
        A contiguous tensor without gradient, or `Int8Blocks`, on the device of `tensor`.

    Raises:
        UnknownNameError: no such stored type.
        DeltaError: a value is NaN or infinite, or too large for the stored type.

    Example:
        >>> quantise(torch.tensor([0.1, -3.0]), "float16")
        tensor([ 0.1000, -3.0000], dtype=torch.float16)
        >>> quantise(torch.tensor([0.5, -1.27]), "int8").codes
        tensor([  50, -127], dtype=torch.int8)
    """
    if stored not in STORED:
        raise UnknownNameError("stored type", stored, STORED)
    if not tensor.is_floating_point():
        raise DeltaError(f"values to store must be floating, got {tensor.dtype}")
    values = tensor.detach()
    if not bool(torch.isfinite(values).all()):
        raise DeltaError("values to store hold NaN or infinity")
    if stored == "int8":
        return _to_blocks(values)
    rounded = values.to(FLOATS[stored], copy=True).contiguous()
    if not bool(torch.isfinite(rounded).all()):
        raise DeltaError(_too_large(values, stored))
    return rounded


def stored_name(stored: Stored) -> str:
    """Return the name of the stored type.

    Raises:
        DeltaError: a tensor of a type that no delta stores.
    """
    if isinstance(stored, Int8Blocks):
        return "int8"
    for name, dtype in FLOATS.items():
        if stored.dtype == dtype:
            return name
    raise DeltaError(f"{stored.dtype} is not a stored type; use one of {', '.join(STORED)}")


def stored_shape(stored: Stored) -> tuple[int, ...]:
    """Return the shape of the values."""
    return tuple(stored.shape)


def block_count(numel: int) -> int:
    """Return how many scales `numel` values of 8 bits have."""
    return -(-numel // INT8_BLOCK)


def _to_blocks(values: Tensor) -> Int8Blocks:
    flat = values.to(torch.float32).reshape(-1)
    blocks = block_count(flat.numel())
    padded = flat.new_zeros(blocks * INT8_BLOCK)
    padded[: flat.numel()] = flat
    grid = padded.reshape(blocks, INT8_BLOCK)
    scales = _scales(grid.abs().amax(1)) if blocks else flat.new_zeros(0, dtype=torch.bfloat16)
    if not bool(torch.isfinite(scales.float() * _CODE_MAX).all()):
        raise DeltaError(_too_large(values, "int8"))
    divisor = torch.where(scales == 0, 1.0, scales.float())[:, None]
    codes = torch.where(scales[:, None] == 0, 0.0, grid / divisor)
    codes = codes.round_().clamp_(-_CODE_MAX, _CODE_MAX).reshape(-1)[: flat.numel()]
    return Int8Blocks(codes.to(torch.int8).contiguous(), scales, tuple(values.shape))


def _scales(largest: Tensor) -> Tensor:
    """Return bfloat16 scales for the largest magnitudes `(blocks,)`.

    Rounding a scale to nearest moves largest / scale from 127 by less than 0.5, so the largest
    code is 127 whatever the rounding, and rounding again finds the same scale. (float16 would not
    do: trained differences of 0.008 and less have scales in its subnormal range.)
    """
    scales = (largest / _CODE_MAX).to(torch.bfloat16)
    return torch.where(scales < _SCALE_MIN, 0.0, scales)


def _too_large(values: Tensor, stored: str) -> str:
    largest = float(values.abs().max())
    return f"value {largest:.4g} is too large for {stored}; store as bfloat16 or float32"
