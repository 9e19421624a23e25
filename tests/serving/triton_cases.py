"""The Triton kernels against a loop over entries in float64, by Triton's interpreter.

Run by `test_triton.py` in a process of its own, since TRITON_INTERPRET=1 must be set before triton
is first imported, by whatever module:

    TRITON_INTERPRET=1 python -m pytest tests/serving/triton_cases.py

The interpreter rounds to bfloat16 by cutting (a GPU rounds to nearest), hence a whole unit in the
last place there; it multiplies factors in float32, so the 16-bit matrix unit is not exercised.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graftwork.serving import _triton
from graftwork.serving._triton import RowTile, add_low_rank, add_shared_sparse, add_sparse

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
TILES = [
    None,
    RowTile(positions=1, rows=8, width=2),
    RowTile(positions=4, rows=4, width=4),
    RowTile(positions=16, rows=8, width=2),
]
"""`None`: the public function with the tile it chooses. At width 2, rows beyond 16 are long."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sizes of a batch of groups; `sizes` are positions a group, `around` those of no group."""

    sizes: tuple[int, ...]
    around: tuple[int, int] = (0, 0)
    out: int = 5
    width: int = 7
    dtype: torch.dtype = torch.float32
    stored: torch.dtype = torch.float32
    index: torch.dtype = torch.int32
    padding: int = 0
    seed: int = 0

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, x (rows strided by `padding` more numbers) and bounds."""
        torch.manual_seed(self.seed)
        count = sum(self.sizes) + sum(self.around)
        y = torch.randn(count, self.out + self.padding).to(self.dtype)[:, : self.out]
        x = torch.randn(count, self.width + self.padding).to(self.dtype)[:, : self.width]
        ends = torch.tensor([0, *self.sizes]).cumsum(0) + self.around[0]
        return y, x, ends.to(self.index)

    def row_lengths(self, rows: int) -> list[int]:
        """Return entries of each row: many empty, some full, some between."""
        draw = random.Random(self.seed)
        picks = [(0, 0, 1, 2, draw.randint(0, self.width), self.width) for _ in range(rows)]
        return [min(self.width, draw.choice(pick)) for pick in picks]

    def support(self, groups: int) -> tuple[Tensor, Tensor]:
        """Return crow and cols for `groups` times `out` rows."""
        lengths = self.row_lengths(groups * self.out)
        draw = random.Random(self.seed + 1)
        cols = [c for n in lengths for c in sorted(draw.sample(range(self.width), n))]
        crow = torch.tensor([0, *lengths]).cumsum(0)
        return crow.int(), torch.tensor(cols, dtype=torch.int32)


batches = st.builds(
    Batch,
    sizes=st.lists(st.sampled_from([0, 1, 1, 2, 5, 19]), min_size=1, max_size=5).map(tuple),
    around=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    out=st.integers(1, 18),
    width=st.integers(1, 40),
    dtype=st.sampled_from(FLOATS),
    stored=st.sampled_from(FLOATS),
    index=st.sampled_from([torch.int32, torch.int64]),
    padding=st.sampled_from([0, 3]),
    seed=st.integers(0, 1000),
)


def close(got: Tensor, want: Tensor, scale: Tensor, message: str = "") -> None:
    """Compare with one rounding to the dtype of `got` and float32 sums of magnitude `scale`."""
    # A unit in the last place: twice the half that rounding to nearest would need (see above).
    unit = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}[got.dtype]
    bound = unit * want.abs() + 4e-6 * scale + 1e-7
    excess = ((got.double() - want).abs() - bound).max() if want.numel() else torch.tensor(-1.0)
    assert excess <= 0, f"{message} off by {excess:.2e} beyond the bound"


def sparse_by_loop(
    batch: Batch, y: Tensor, x: Tensor, crow: Tensor, cols: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what y must be and the magnitude of its sums, entry by entry in float64.

    `values` is `(nnz,)` for supports of their own, `(G, nnz)` for a shared one.
    """
    want, scale = y.double(), y.double().abs()
    start = batch.around[0]
    for group, size in enumerate(batch.sizes):
        own = values if values.dim() == 1 else values[group]
        first = group * batch.out if values.dim() == 1 else 0
        for o in range(batch.out):
            for e in range(int(crow[first + o]), int(crow[first + o + 1])):
                part = own[e].double() * x[start : start + size, int(cols[e])].double()
                want[start : start + size, o] += part
                scale[start : start + size, o] += part.abs()
        start += size
    return want, scale


def launch(tile: RowTile | None, shared: bool, *tensors: Tensor) -> None:
    if tile is not None:
        _triton.launch_sparse(tensors, tile, shared=shared)
    elif shared:
        add_shared_sparse(*tensors)
    else:
        add_sparse(*tensors)


def test_these_run_by_the_interpreter() -> None:
    assert _triton.load_kernels(torch.empty(0)).INTERPRETED


@pytest.mark.parametrize("tile", TILES, ids=["chosen", "single", "short", "long"])
@settings(max_examples=12)
@given(batch=batches)
def test_sparse(tile: RowTile | None, batch: Batch) -> None:
    y, x, bounds = batch.tensors()
    crow, cols = batch.support(len(batch.sizes))
    values = torch.randn(cols.numel()).to(batch.stored)
    want, scale = sparse_by_loop(batch, y, x, crow, cols, values)
    if cols.numel() or tile is None:
        launch(tile, False, y, x, bounds, crow, cols, values)
    close(y, want, scale)


@pytest.mark.parametrize("tile", TILES, ids=["chosen", "single", "short", "long"])
@settings(max_examples=12)
@given(batch=batches)
def test_shared_sparse(tile: RowTile | None, batch: Batch) -> None:
    y, x, bounds = batch.tensors()
    crow, cols = batch.support(1)
    values = torch.randn(len(batch.sizes), cols.numel()).to(batch.stored)
    want, scale = sparse_by_loop(batch, y, x, crow, cols, values)
    if cols.numel() or tile is None:
        launch(tile, True, y, x, bounds, crow, cols, values)
    close(y, want, scale)


def low_rank_by_loop(
    batch: Batch, y: Tensor, x: Tensor, right: Tensor, left: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what y must be and the magnitude of its sums, position by position in float64."""
    want, scale = y.double(), y.double().abs()
    start = batch.around[0]
    for group, size in enumerate(batch.sizes):
        r, l = right[group].double(), left[group].double()
        for p in range(start, start + size):
            want[p] += l @ (r @ x[p].double())
            scale[p] += l.abs() @ (r.abs() @ x[p].double().abs())
        start += size
    return want, scale


def check_low_rank(batch: Batch, rank: int) -> None:
    y, x, bounds = batch.tensors()
    right = torch.randn(len(batch.sizes), rank, batch.width).to(batch.stored)
    left = torch.randn(len(batch.sizes), batch.out, rank).to(batch.stored)
    want, scale = low_rank_by_loop(batch, y, x, right, left)
    add_low_rank(y, x, bounds, right, left)
    close(y, want, scale)


@settings(max_examples=20)
@given(batch=batches, rank=st.integers(1, 20))
def test_low_rank(batch: Batch, rank: int) -> None:
    check_low_rank(batch, rank)


@pytest.mark.parametrize("sizes", [(1, 0, 1), (9, 3), (70, 1, 40)], ids=str)
def test_low_rank_in_slices_and_blocks_of_ranks(sizes: tuple[int, ...]) -> None:
    # 70 ranks are two blocks; 700 columns are several slices.
    check_low_rank(Batch(sizes=sizes, out=130, width=700), rank=70)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("tile", TILES[1:], ids=["single", "short", "long"])
def test_a_dense_row_among_empty_ones(tile: RowTile, shared: bool) -> None:
    batch = Batch(sizes=(3, 1, 6), out=11, width=1100)
    y, x, bounds = batch.tensors()
    lengths = [0, 0, 1100, 1, 0, 3, 700, 0, 0, 0, 0] * (1 if shared else 3)
    crow = torch.tensor([0, *lengths]).cumsum(0).int()
    cols = torch.cat([torch.arange(n) for n in lengths]).int()
    values = torch.randn(3, cols.numel()) if shared else torch.randn(cols.numel())
    want, scale = sparse_by_loop(batch, y, x, crow, cols, values)
    launch(tile, shared, y, x, bounds, crow, cols, values)
    close(y, want, scale)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_two_hundred_groups_of_one_position(shared: bool) -> None:
    batch = Batch(sizes=(1,) * 200, out=3, width=9, dtype=torch.bfloat16, stored=torch.bfloat16)
    y, x, bounds = batch.tensors()
    crow, cols = batch.support(1 if shared else 200)
    values = torch.randn(200, cols.numel()) if shared else torch.randn(cols.numel())
    want, scale = sparse_by_loop(batch, y, x, crow, cols, values)
    launch(None, shared, y, x, bounds, crow, cols, values)
    close(y, want, scale)
    check_low_rank(batch, rank=3)


def test_one_large_group_among_many_small_ones() -> None:
    batch = Batch(sizes=(1, 0, 90, 1, 1, 0, 2), around=(1, 1), out=9, width=20)
    y, x, bounds = batch.tensors()
    crow, cols = batch.support(7)
    values = torch.randn(cols.numel())
    want, scale = sparse_by_loop(batch, y, x, crow, cols, values)
    add_sparse(y, x, bounds, crow, cols, values)
    close(y, want, scale)


@pytest.mark.parametrize("tile", TILES[1:], ids=["single", "short", "long"])
def test_groups_that_begin_and_end_within_a_tile(tile: RowTile) -> None:
    # 19 positions from 15 on lie in three aligned tiles of 16, though two would hold them.
    batch = Batch(sizes=(15, 19, 1), around=(0, 2), out=5, width=6)
    y, x, bounds = batch.tensors()
    crow, cols = batch.support(3)
    values = torch.randn(cols.numel())
    want, scale = sparse_by_loop(batch, y, x, crow, cols, values)
    launch(tile, False, y, x, bounds, crow, cols, values)
    close(y, want, scale)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("tile", TILES[1:], ids=["single", "short", "long"])
def test_law06_a_group_takes_nothing_from_its_neighbours(tile: RowTile, shared: bool) -> None:
    batch = Batch(sizes=(2, 3, 2), around=(1, 1), out=9, width=30, padding=2)
    y, x, bounds = batch.tensors()
    crow, cols = batch.support(1 if shared else 3)
    values = torch.randn(3, cols.numel()) if shared else torch.randn(cols.numel())
    before = y.clone()
    clean = y.clone()
    launch(tile, shared, clean, x, bounds, crow, cols, values)
    # Poison everything that belongs to the groups beside the middle one, and to none.
    middle = slice(3, 6)
    poisoned = torch.full_like(x, float("nan"))
    poisoned[middle] = x[middle]
    dirty = before.clone()
    launch(tile, shared, dirty, poisoned, bounds, crow, cols, values)
    torch.testing.assert_close(dirty[middle], clean[middle], rtol=0, atol=0)
    torch.testing.assert_close(dirty[[0, 8]], before[[0, 8]], rtol=0, atol=0)


def test_numbers_between_the_rows_of_y_stay() -> None:
    batch = Batch(sizes=(2, 1), out=5, width=8)
    wide = torch.full((3, 9), 7.0)
    _, x, bounds = batch.tensors()
    crow, cols = batch.support(2)
    add_sparse(wide[:, :5], x, bounds, crow, cols, torch.randn(cols.numel()))
    add_low_rank(wide[:, :5], x, bounds, torch.randn(2, 3, 8), torch.randn(2, 5, 3))
    assert (wide[:, 5:] == 7.0).all()
    assert (wide[:, :5] != 7.0).any()
