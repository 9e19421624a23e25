"""What makes a delta well-formed: checked before a file is written and after one is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import DeltaError
from graftwork.deltas._codec import MAX_NUMEL
from graftwork.deltas._delta import Delta, TensorPrint
from graftwork.deltas._quantise import block_count, stored_name
from graftwork.deltas._seeded import seeded_positions
from graftwork.deltas._terms import Int8Blocks, LowRank, Port, Sparse, Stored, Update


def validate(delta: Delta, *, redraw: bool = True) -> None:
    """Check every rule of `docs/file-format.md` that a delta in memory can break.

    Arguments:
        delta: any delta.
        redraw: draw seeded masks again and compare; off where they were drawn a moment ago.

    Raises:
        DeltaError: naming the tensor or field, and what is wrong.
    """
    for name, update in delta.updates.items():
        _check_name("parameter", name)
        try:
            _check_update(update, redraw)
        except DeltaError as error:
            raise DeltaError(f"update of {name!r}: {error}") from None
    for name, port in delta.ports.items():
        _check_name("port", name)
        try:
            _check_port(port)
        except DeltaError as error:
            raise DeltaError(f"port {name!r}: {error}") from None
    for name, tensor_print in delta.fingerprint.tensors.items():
        _check_print(name, tensor_print, delta.updates.get(name))
    for key, value in delta.fingerprint.processing.items():
        if not isinstance(value, str):
            raise DeltaError(f"fingerprint.processing[{key!r}] must be text, got {value!r}")
    for field in ("signature", "provenance", "extra"):
        canonical_json(getattr(delta, field), field)


def canonical_json(value: object, where: str) -> bytes:
    """Return the one JSON text of `value`: sorted keys, no spaces, ASCII.

    Raises:
        DeltaError: `value` holds what JSON cannot: NaN, infinity, keys that are not text, objects.
    """
    try:
        _check_keys(value, where)
        text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise DeltaError(f"{where} is not plain JSON: {error}") from None
    return text.encode("ascii")


def check_shape(shape: tuple[Any, ...]) -> None:
    """Check that a tensor of `shape` can exist.

    Raises:
        DeltaError: a negative size, or more than 2^60 entries.
    """
    if not all(type(size) is int and size >= 0 for size in shape):
        raise DeltaError(f"shape {shape} is not a tuple of sizes")
    if math.prod(max(size, 1) for size in shape) > MAX_NUMEL:
        raise DeltaError(f"shape {shape} has more than 2^60 entries")


def _check_keys(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise DeltaError(f"{where} has the key {key!r}; JSON keys are text")
            _check_keys(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_keys(item, where)


def _check_name(what: str, name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise DeltaError(f"a {what} name must be text, got {name!r}")


def _check_update(update: Update, redraw: bool) -> None:
    check_shape(update.shape)
    if update.sparse is not None:
        _check_sparse(update.sparse, math.prod(update.shape), redraw)
    if update.low_rank is not None:
        _check_low_rank(update.low_rank, update.shape)
    if update.dense is not None:
        _check_stored(update.dense, update.shape, "dense")
    if update.scale is not None:
        shape = tuple(update.scale.shape)
        _check_stored(update.scale, shape, "scale")
        sizes = zip(shape[::-1], update.shape[::-1], strict=False)
        if len(shape) > len(update.shape) or any(a not in (1, b) for a, b in sizes):
            raise DeltaError(f"scale of shape {shape} does not broadcast to {update.shape}")


def _check_sparse(sparse: Sparse, numel: int, redraw: bool) -> None:
    positions = sparse.positions
    if positions.dtype != torch.int64 or positions.dim() != 1:
        raise DeltaError(f"positions must be (k,) int64, got {_describe(positions)}")
    count = positions.numel()
    _check_stored(sparse.values, (count,), "sparse values")
    if not bool((positions[1:] > positions[:-1]).all()):
        raise DeltaError("positions must increase strictly")
    if count and (int(positions[0]) < 0 or int(positions[-1]) >= numel):
        raise DeltaError(f"positions must lie in [0, {numel})")
    if sparse.mask is None:
        return
    if type(sparse.mask.seed) is not int or not isinstance(sparse.mask.key, str):
        raise DeltaError(f"a mask needs an integer seed and a text key, got {sparse.mask}")
    if redraw and not torch.equal(seeded_positions(sparse.mask, numel, count), positions.to("cpu")):
        raise DeltaError(f"positions are not those that {sparse.mask} draws; drop the mask")


def _check_low_rank(term: LowRank, shape: tuple[int, ...]) -> None:
    if not shape or 0 in shape:
        raise DeltaError(f"a low-rank term needs a matrix, not shape {shape}")
    rows = shape[:2] if term.batched and len(shape) > 2 else shape[:1]
    if len(term.left.shape) != len(rows) + 1 or term.rank < 1:
        raise DeltaError(f"left factor must be {(*rows, 'r')}, got {tuple(term.left.shape)}")
    columns = math.prod(shape[len(rows) :])
    _check_stored(term.left, (*rows, term.rank), "left factor")
    _check_stored(term.right, (*rows[:-1], term.rank, columns), "right factor")
    if not math.isfinite(term.factor):
        raise DeltaError(f"factor {term.factor} is not finite")


def _check_port(port: Port) -> None:
    _check_name("kind", port.kind)
    canonical_json(port.config, "config")
    for name, stored in port.tensors.items():
        _check_name("tensor", name)
        check_shape(tuple(stored.shape))
        if isinstance(stored, Tensor) and stored.dtype == torch.int64:
            continue
        _check_stored(stored, tuple(stored.shape), f"tensor {name!r}")


def _check_print(name: str, tensor_print: TensorPrint, update: Update | None) -> None:
    _check_name("parameter", name)
    check_shape(tensor_print.shape)
    if update is not None and update.shape != tensor_print.shape:
        raise DeltaError(
            f"fingerprint of {name!r} has shape {tensor_print.shape}, its update {update.shape}"
        )
    texts: list[Any] = [tensor_print.dtype, tensor_print.digest]
    if not all(isinstance(text, str) for text in texts):
        raise DeltaError(f"fingerprint of {name!r} must have text dtype and digest")


def _check_stored(stored: Stored, shape: tuple[int, ...], what: str) -> None:
    stored_name(stored)
    if tuple(stored.shape) != shape:
        raise DeltaError(f"{what} must have shape {shape}, got {tuple(stored.shape)}")
    if isinstance(stored, Int8Blocks):
        _check_blocks(stored, math.prod(shape), what)
    elif not bool(torch.isfinite(stored).all()):
        raise DeltaError(f"{what} hold NaN or infinity")


def _check_blocks(stored: Int8Blocks, numel: int, what: str) -> None:
    codes, scales = stored.codes, stored.scales
    if codes.dtype != torch.int8 or tuple(codes.shape) != (numel,):
        raise DeltaError(f"{what}: codes must be ({numel},) int8, got {_describe(codes)}")
    if scales.dtype != torch.bfloat16 or tuple(scales.shape) != (block_count(numel),):
        blocks = block_count(numel)
        raise DeltaError(f"{what}: scales must be ({blocks},) bfloat16, got {_describe(scales)}")
    if bool((codes < -127).any()):
        raise DeltaError(f"{what}: code -128 is not used")
    if not bool(torch.isfinite(scales.float() * 127).all()) or bool(scales.signbit().any()):
        raise DeltaError(f"{what} hold NaN, infinity or a negative scale")


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"
