"""Every path of the products against a naive loop in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from graftwork.bases import load
from graftwork.deltas import (
    Delta,
    LowRank,
    Sparse,
    Update,
    fingerprint_of,
    quantise,
)
from graftwork.serving import _products
from graftwork.serving._terms import matrix_of, stack
from tests.battery.capabilities import Transposed
from tests.battery.deltas import oracle
from tests.serving.support import TOLERANCE, Held, rows_of

PATHS = {
    "scratch": {"SCRATCH_FROM": 0},
    "each": {"SCRATCH_FROM": 10**9, "BLOCK_TO": 0},
    "block": {"SCRATCH_FROM": 10**9, "BLOCK_TO": 10**9, "PADDED": 10**9},
}


def update(shape: tuple[int, int], kinds: set[str], seed: int, stored: str = "float32") -> Update:
    """Return an update of a matrix with these terms."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    count = 1 + seed % (shape[0] * shape[1])
    positions = torch.randperm(shape[0] * shape[1], generator=generator)[:count].sort().values
    rank = 1 + seed % 3
    scale = draw(shape[0], 1) if "rows" in kinds else draw(shape[1]) if "columns" in kinds else None
    return Update(
        shape,
        sparse=Sparse(positions, quantise(draw(count), stored)) if "sparse" in kinds else None,
        low_rank=LowRank(draw(shape[0], rank), draw(rank, shape[1]), 0.7)
        if "low" in kinds
        else None,
        dense=quantise(draw(*shape), stored) if "dense" in kinds else None,
        scale=None if scale is None else 1 + 0.3 * scale,
    )


KINDS = (
    {"sparse"},
    {"low"},
    {"sparse", "low"},
    {"rows"},
    {"columns"},
    {"sparse", "low", "rows"},
    {"sparse", "low", "columns"},
    {"dense"},
    {"sparse", "low", "dense", "rows"},
)


def layer_of(transposed: bool, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    module = Transposed() if transposed else nn.Sequential(nn.Linear(8, 16))
    return module.to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_law06_every_path_is_the_naive_loop(
    path: str, transposed: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PATHS[path].items():
        monkeypatch.setattr(_products, name, value)
    base = load(layer_of(transposed, dtype))
    (name,) = (n for n in base.names.pieces if n.endswith("weight"))
    shape = base.names[name].shape
    bias = next(p for n, p in base.model.named_parameters() if n.endswith("bias")).detach().double()
    weight = base.model.get_parameter(name).detach().double()
    updates = [update(shape, kinds, seed) for seed, kinds in enumerate(KINDS)]
    held = Held.of(
        base, [Delta({name: u}, fingerprint=fingerprint_of(base, [name])) for u in updates]
    )
    # groups of uneven sizes: list i has i % 3 + 1 rows of two positions
    lists = [((i, 1.0),) for i in range(len(KINDS))]
    lists += [(), ((0, 0.5), (2, -1.0)), ((3, 0.5), (5, 2.0)), ((3, 1.0), (4, 1.0)), ((0, 0.0),)]
    rows: list[Any] = [row for i, row in enumerate(lists) for _ in range(i % 3 + 1)]
    width = shape[0] if transposed else shape[1]
    x = torch.randn(len(rows), 2, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    outputs, report = held.run(rows, rows_of(x), lambda m, _p, i: m(i["x"]))
    for row, output, given_ in zip(rows, outputs, x.double(), strict=True):
        own = weight + sum((f * (oracle(updates[i], weight) - weight) for i, f in row), 0 * weight)
        expected = given_ @ (own if transposed else own.T) + bias
        bound = TOLERANCE[dtype] * max(1.0, expected.abs().max().item())
        assert (output.double() - expected).abs().max().item() <= bound, row
    # scratch weights are for layers without scales
    assert set(report.paths) == {"each" if path == "scratch" else path}


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "int8", "float64"])
@pytest.mark.parametrize("path", PATHS)
def test_values_of_every_stored_type(
    path: str, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PATHS[path].items():
        monkeypatch.setattr(_products, name, value)
    base = load(layer_of(False, torch.float32))
    deltas = [
        Delta(
            {"0.weight": update((16, 8), {"sparse"}, 60 + seed, stored)},
            fingerprint=fingerprint_of(base, ["0.weight"]),
        )
        for seed in range(3)
    ]
    rows: list[Any] = [((0, 1.0),), ((1, 1.0),), ((2, 0.5), (0, 0.5)), (), ((0, 1.0),)]
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    report = Held.of(base, deltas).check(rows, rows_of(x), lambda m, _p, i: m(i["x"]))
    assert set(report.paths) == {path}


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    counts=st.lists(st.integers(0, 20), min_size=6, max_size=6),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_sparse_products_of_uneven_groups(
    sizes: list[int], counts: list[int], transposed: bool, seed: int
) -> None:
    out, inner, generator = 7, 5, torch.Generator().manual_seed(seed)
    shape = (inner, out) if transposed else (out, inner)
    updates = []
    for count in counts[: len(sizes)]:
        positions = torch.randperm(35, generator=generator)[:count].sort().values
        values = torch.randn(count, generator=generator, dtype=torch.float64)
        updates.append(Update(shape, sparse=Sparse(positions, values)))
    parts = [
        matrix_of([(u, 1.0)], (out, inner), torch.float64, transposed=transposed) for u in updates
    ]
    matrices = stack(parts, (out, inner), torch.empty(0, dtype=torch.float64))
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    x = torch.randn(bounds[-1], inner, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    base = x @ (weight if transposed else weight.T)
    expected = torch.cat(
        [
            x[a:b] @ (oracle(u, weight) if transposed else oracle(u, weight).T)
            for u, (a, b) in zip(updates, pairwise(bounds), strict=True)
        ]
    )
    if matrices.sparse is None:
        assert not any(counts[: len(sizes)])
        return
    for path in ("block", "each"):
        found = base.clone()
        _products.add_sparse(found, x, matrices.sparse, bounds, path)
        torch.testing.assert_close(found, expected)
    kept = weight.clone()
    found = _products.scratch_product(x, weight, matrices.sparse, bounds, transposed=transposed)
    torch.testing.assert_close(found, expected)
    assert torch.equal(weight, kept)


@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any),
    ranks=st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_low_rank_products_even_and_ragged(sizes: list[int], ranks: list[int]) -> None:
    out, inner, generator = 6, 4, torch.Generator().manual_seed(0)
    updates = []
    for rank in ranks[: len(sizes)]:
        left = torch.randn(out, rank, generator=generator, dtype=torch.float64)
        right = torch.randn(rank, inner, generator=generator, dtype=torch.float64)
        updates.append([(Update((out, inner), low_rank=LowRank(left, right, 0.5)), 2.0)])
    chosen = [u if r else [] for u, r in zip(updates, ranks, strict=False)]
    parts = [matrix_of(u, (out, inner), torch.float64, transposed=False) for u in chosen]
    matrices = stack(parts, (out, inner), torch.empty(0, dtype=torch.float64))
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    x = torch.randn(bounds[-1], inner, generator=generator, dtype=torch.float64)
    found = x.new_zeros(len(x), out)
    _products.add_low_rank(found, x, matrices, bounds)
    for u, (a, b) in zip(chosen, pairwise(bounds), strict=True):
        own = sum((0.5 * 2.0 * t.low_rank.left @ t.low_rank.right for t, _ in u), x.new_zeros(6, 4))
        torch.testing.assert_close(found[a:b], x[a:b] @ own.T)
