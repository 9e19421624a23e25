"""Grouped sparse and low-rank products on a GPU, by Triton (Tillet, Kung and Cox 2019).

A batch of mixed tasks is cut into groups: positions (rows of x) from `bounds[g]` to `bounds[g + 1]`
belong to task g. One call adds what all tasks add to one parameter's output; group sizes stay on
the device, so nothing waits for it: grids come from the shapes alone.

**What bounds it.** With a position or so per group (decoding) there are two operations for the 6
to 8 bytes of an entry, so the floor is the time to stream crow, cols and values once:
`4 (out + 1) + (4 + bytes of a value) nnz` per group, beside `x` and `y`, which stay in the cache.
`rows_kernel` takes about 1024 entries per program and four warps, so that a multiprocessor has some
tens of kilobytes under way. With long groups (prefill) deltas stay in the cache and the floor is
what x moves through it, `bytes of x * nnz` per position: `columns_kernel` reads x transposed, a run
of positions per entry. The transposed copy moves x twice more, which pays from some 16 positions
a group on, where the gather of single numbers would take a cache line for each.
Low-rank factors are streamed once as well, `r (in + out)` numbers per group, with the columns cut
into slices where positions are too few to fill the card (as S-LoRA, Sheng et al. 2023, section 5.2,
and Punica, Chen et al. 2023, section 4, gather their factors per group).

Tiles are chosen from these figures and were **never run on a GPU**: their code is compiled for
compute capability 9.0 in the tests, and their results are tested by Triton's interpreter.
`benchmarks/triton_rows.py --sweep` tries the alternatives on a card.

Sums are float32 and `y` is rounded once; each position's result depends on its own group only. The
kernels have no backward. What the device alone knows is not checked: bounds must rise from 0 to n
at most, columns lie in [0, in), crow rise from 0 to nnz.
"""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import InputError, MissingDependencyError, UnsupportedError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FUSED = {"enable_fp_fusion": True}
"""Products and sums in one rounding, said outright: triton 3.10 changes its default."""
PROGRAMS = 1024
"""Programs that fill a card: about 8 on each of 132 multiprocessors."""
LONG_STEPS = 8
"""Steps of a block after which rows that are not done are finished one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTile:
    """How much of a sparse product one program does."""

    positions: int
    """Positions of a tile; from 16 on x is read transposed."""
    rows: int
    """Rows (outputs) of a block."""
    width: int
    """Entries of a row taken at a time."""
    warps: int = 4
    """Warps of a program: 128 threads, of which a multiprocessor holds 8 to 16 programs."""


def row_tile(positions: int, groups: int, out: int, entries: int, shared: bool = False) -> RowTile:
    """Return the tile for n positions in G groups of `(out, in)` tensors with `entries` in all.

    Example:
        >>> row_tile(200, 200, 4096, 200 * 83886)
        RowTile(positions=1, rows=64, width=16, warps=4)
    """
    mean = -(-entries // max(1, groups * out))
    each = positions / groups
    fits = _power(out)
    if each > 16:
        return RowTile(positions=64 if each > 64 else 32, rows=min(32, fits), width=4)
    tile = 4 if shared or each > 2 else 1
    # Half a row at a time: rows vary in length, and a whole row's width is mostly idle.
    width = min(128, max(4, _power((mean + 1) // 2)))
    return RowTile(
        positions=tile, rows=min(fits, max(4, (1024 >> (tile > 1)) // width)), width=width
    )


def add_sparse(
    y: Tensor, x: Tensor, bounds: Tensor, crow: Tensor, cols: Tensor, values: Tensor
) -> None:
    """Add each group's sparse product to its positions, in place.

    `y[p, o] += sum over entries e of row (g * out + o) of values[e] * x[p, cols[e]]` for
    `bounds[g] <= p < bounds[g + 1]`. Bytes, bounds and tiles: see the module.

    Args:
        y: `(n, out)`, float32, bfloat16 or float16; rows may be strided.
        x: `(n, in)`, likewise.
        bounds: `(G + 1,)` int32 or int64, non-decreasing; positions outside belong to no group.
        crow: `(G * out + 1,)` int32, starts of the rows in cols and values.
        cols: `(nnz,)` int32 in [0, in).
        values: `(nnz,)`, one of the dtypes above.

    Raises:
        InputError: shapes, dtypes, strides or devices do not fit, or a gradient would be lost.
        MissingDependencyError: triton is absent.
        UnsupportedError: tensors on the CPU outside Triton's interpreter.

    Example:
        >>> if torch.cuda.is_available():  # two positions of one task; row 0 holds 2 at column 1
        ...     y, x = torch.zeros(2, 1, device="cuda"), torch.ones(2, 3, device="cuda")
        ...     bounds, crow, cols = (torch.tensor(v).int().cuda() for v in ([0, 2], [0, 1], [1]))
        ...     add_sparse(y, x, bounds, crow, cols, torch.tensor([2.0], device="cuda"))
        ...     assert y.tolist() == [[2.0], [2.0]]
    """
    groups = _check(y, x, bounds, {"crow": crow, "cols": cols}, {"values": values})
    _check_shape("crow", crow, (groups * y.shape[1] + 1,))
    _check_shape("values", values, (cols.numel(),))
    if cols.numel() and groups and y.numel():
        tile = row_tile(y.shape[0], groups, y.shape[1], cols.numel())
        launch_sparse((y, x, bounds, crow, cols, values), tile, shared=False)


def add_shared_sparse(
    y: Tensor, x: Tensor, bounds: Tensor, crow: Tensor, cols: Tensor, values: Tensor
) -> None:
    """Add as `add_sparse` for groups on ONE support: positions are read once for a whole tile.

    The floor falls from `4 + b` to `b` bytes an entry and group, `b` those of a value: the one
    support stays in the cache, and tiles of short groups span several groups.

    Args:
        y: `(n, out)` as in `add_sparse`.
        x: `(n, in)` as in `add_sparse`.
        bounds: `(G + 1,)` as in `add_sparse`.
        crow: `(out + 1,)` int32.
        cols: `(nnz,)` int32 in [0, in).
        values: `(G, nnz)`, contiguous.

    Raises:
        InputError, MissingDependencyError, UnsupportedError: as `add_sparse`.

    Example:
        >>> if torch.cuda.is_available():  # two tasks with a number of their own at column 1
        ...     y, x = torch.zeros(2, 1, device="cuda"), torch.ones(2, 3, device="cuda")
        ...     bounds, crow, cols = (
        ...         torch.tensor(v).int().cuda() for v in ([0, 1, 2], [0, 1], [1])
        ...     )
        ...     values = torch.tensor([[2.0], [3.0]], device="cuda")
        ...     add_shared_sparse(y, x, bounds, crow, cols, values)
        ...     assert y.tolist() == [[2.0], [3.0]]
    """
    groups = _check(y, x, bounds, {"crow": crow, "cols": cols}, {"values": values})
    _check_shape("crow", crow, (y.shape[1] + 1,))
    _check_shape("values", values, (groups, cols.numel()))
    if values.numel() and y.numel():
        tile = row_tile(y.shape[0], groups, y.shape[1], values.numel(), shared=True)
        launch_sparse((y, x, bounds, crow, cols, values), tile, shared=True)


def add_low_rank(y: Tensor, x: Tensor, bounds: Tensor, right: Tensor, left: Tensor) -> None:
    """Add `left[g] @ (right[g] @ x[p])` to the positions of each group g, in place.

    Two kernels: into r numbers a position, kept in float32, and out of them. Ranks may differ: pad
    with zeros.

    Args:
        y: `(n, out)` as in `add_sparse`.
        x: `(n, in)` as in `add_sparse`.
        bounds: `(G + 1,)` as in `add_sparse`.
        right: `(G, r, in)`, contiguous.
        left: `(G, out, r)`, contiguous.

    Raises:
        InputError, MissingDependencyError, UnsupportedError: as `add_sparse`.

    Example:
        >>> if torch.cuda.is_available():
        ...     y, x = torch.zeros(1, 2, device="cuda"), torch.ones(1, 3, device="cuda")
        ...     right, left = torch.ones(1, 1, 3, device="cuda"), torch.ones(1, 2, 1, device="cuda")
        ...     add_low_rank(y, x, torch.tensor([0, 1], device="cuda"), right, left)
        ...     assert y.tolist() == [[3.0, 3.0]]
    """
    groups = _check(y, x, bounds, {}, {"right": right, "left": left})
    rank = right.shape[1] if right.dim() == 3 else -1
    _check_shape("right", right, (groups, rank, x.shape[1]))
    _check_shape("left", left, (groups, y.shape[1], rank))
    if not (left.numel() and right.numel() and y.numel()):
        return
    kernels = load_kernels(y)
    each = y.shape[0] / groups
    tile = 1 if each <= 2 else 16 if each <= 32 else 64
    ranks = min(64, max(1 if tile == 1 else 16, _power(rank)))
    launch = {"POSITIONS": tile, "GROUPS": _power(groups), "RANKS": ranks, "num_warps": 4} | FUSED
    with _on(y):
        hidden = _shrink(kernels, x, bounds, right, launch)
        block = _factor_block(y.shape[1], tile, ranks)
        kernels.expand_kernel[(_tiles(y, groups, tile) * -(-y.shape[1] // block),)](
            *(y, hidden, bounds, left, groups, y.shape[0], rank, y.shape[1], hidden.shape[0]),
            y.stride(0),
            BLOCK=block,
            **launch,
        )


def _shrink(kernels: Any, x: Tensor, bounds: Tensor, right: Tensor, launch: Any) -> Tensor:
    """Return `right[g] @ x[p]` as sums over slices of columns, `(slices, n, r)` float32."""
    (count, width), (groups, rank, _) = x.shape, right.shape
    tile, ranks = launch["POSITIONS"], launch["RANKS"]
    block = _factor_block(width, tile, ranks)
    tiles = _tiles(x, groups, tile)
    slices = max(1, min(16, PROGRAMS // tiles, -(-width // (2 * block))))
    span = -(-width // (slices * block))
    slices = -(-width // (span * block))
    hidden = torch.empty(slices, count, rank, dtype=torch.float32, device=x.device)
    # 16-bit factors multiply exactly in float32; under the interpreter numpy has no bfloat16.
    native = x.dtype == right.dtype != torch.float32 and not kernels.INTERPRETED
    kernels.shrink_kernel[(tiles, slices, -(-rank // ranks))](
        *(hidden, x, bounds, right, groups, count, rank, width, span, x.stride(0)),
        BLOCK=block,
        NATIVE=native,
        **launch,
    )
    return hidden


def _factor_block(width: int, tile: int, ranks: int) -> int:
    """Return the columns of a factor taken at a time: 8 KB of 16 bits where it is streamed."""
    return min(max(16, _power(width)), 64 if tile > 1 else max(64, 4096 // ranks))


def launch_sparse(tensors: tuple[Tensor, ...], tile: RowTile, *, shared: bool) -> None:
    """Launch the sparse kernel with checked `tensors`, the arguments of `add_sparse`, by `tile`."""
    y, x, bounds, crow, cols, values = tensors
    kernels = load_kernels(y)
    (count, out), groups = y.shape, bounds.numel() - 1
    mean = values.numel() / (groups * out)
    sizes: dict[str, int] = {
        "POSITIONS": tile.positions,
        "GROUPS": _power(groups),
        "ROWS": tile.rows,
        "num_warps": tile.warps,
        **FUSED,
    }
    blocks = -(-out // tile.rows)
    with _on(y):
        if tile.positions < 16:
            tiles = -(-count // tile.positions) if shared else _tiles(y, groups, tile.positions)
            kernels.rows_kernel[(tiles * blocks,)](
                *(y, x, bounds, crow, cols, values, groups, out, cols.numel()),
                *(y.stride(0), x.stride(0)),
                WIDTH=tile.width,
                LONG=LONG_STEPS * tile.width,
                WIDE=512,
                SHARED=shared,
                **sizes,
            )
            return
        turned = _turned(x, tile.positions)
        kernels.columns_kernel[(_tiles(y, groups, tile.positions) * blocks,)](
            *(y, turned, bounds, crow, cols, values, groups, out),
            *((0, cols.numel()) if shared else (out, 0)),
            *(y.stride(0), turned.stride(0)),
            AHEAD=tile.width,
            LONG=max(32, 4 * _power(int(mean) + 1)),
            WIDE=32,
            **sizes,
        )


def _turned(x: Tensor, positions: int) -> Tensor:
    """Return x transposed, `(in, n)`, with n padded by zeros to whole tiles."""
    count, width = x.shape
    turned = x.new_empty(width, -(-count // positions) * positions)
    turned[:, :count].copy_(x.t())
    if count % positions:
        turned[:, count:].zero_()
    return turned


def _tiles(y: Tensor, groups: int, positions: int) -> int:
    """Return the most tiles of n positions in G groups: a whole number each, one begun a group."""
    return (
        int(y.shape[0]) if positions == 1 else -(-y.shape[0] // positions) + min(groups, y.shape[0])
    )


def _power(number: int) -> int:
    """Return the least power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's card current: triton launches on that one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def load_kernels(like: Tensor) -> Any:
    """Return the module of kernels, for tensors on the device of `like`.

    Raises:
        MissingDependencyError: triton is absent.
        UnsupportedError: `like` is on the CPU, and triton was not told to interpret.
    """
    try:
        importlib.import_module("triton")
    except ImportError as error:
        raise MissingDependencyError("triton", "gpu", "mixed batches on a GPU") from error
    kernels = importlib.import_module("graftwork.serving._triton_kernels")
    if not (like.is_cuda or kernels.INTERPRETED):
        raise UnsupportedError(
            f"the Triton kernels take tensors on a GPU, not on {str(like.device)!r}: move the "
            f"batch there, or, to test, set TRITON_INTERPRET=1 before triton is first imported"
        )
    return kernels


def _check(
    y: Tensor,
    x: Tensor,
    bounds: Tensor,
    indices: dict[str, Tensor],
    numbers: dict[str, Tensor],
) -> int:
    """Check what the shapes and dtypes tell, without waiting for the device; return the groups."""
    fixed = {"bounds": bounds, **indices, **numbers}
    for name, tensor in {"x": x, **fixed}.items():
        if tensor.device != y.device:
            raise InputError(f"{name} is on {tensor.device}, y on {y.device}: move it there")
    for name, tensor in fixed.items():
        if not tensor.is_contiguous():
            raise InputError(f"{name} is not contiguous: call .contiguous() once, when it is made")
    for name, tensor in {"y": y, "x": x, **numbers}.items():
        _check_dtype(name, tensor, DTYPES)
    for name, tensor in indices.items():
        _check_dtype(name, tensor, (torch.int32,))
    _check_dtype("bounds", bounds, (torch.int32, torch.int64))
    _check_shape("bounds", bounds, (max(1, bounds.numel()),))
    _check_rows("y", y)
    _check_rows("x", x)
    _check_shape("x", x, (y.shape[0], x.shape[1]))
    # A row stride below the width makes rows overlap, as in an expanded tensor: sums would be lost.
    if y.shape[0] > 1 and y.stride(0) < y.shape[1]:
        raise InputError(f"the rows of y overlap (stride {y.stride(0)}, width {y.shape[1]})")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (y, x, *numbers.values())):
        raise InputError("the kernels have no backward: call them under torch.no_grad()")
    return bounds.numel() - 1


def _check_dtype(name: str, tensor: Tensor, wanted: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in wanted:
        names = " or ".join(str(dtype) for dtype in wanted)
        raise InputError(f"{name} is {tensor.dtype}, not {names}")


def _check_rows(name: str, tensor: Tensor) -> None:
    if tensor.dim() != 2 or (tensor.shape[1] > 1 and tensor.stride(1) != 1):
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}: wanted two "
            f"dimensions, the last of stride 1"
        )


def _check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}, not {wanted}")
