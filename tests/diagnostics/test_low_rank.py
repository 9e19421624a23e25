"""The LoRA paper's analyses against closed forms and loops."""

from __future__ import annotations

import math

import pytest
import torch
from tests.tuning.support import plain_base, run_stage
from torch import nn
from torch.nn import functional as F

from graftwork._errors import DeltaError, FingerprintError
from graftwork.bases import load
from graftwork.deltas import Delta, LowRank, Update, fingerprint_of, quantise
from graftwork.diagnostics import (
    amplification,
    diagnose_low_rank,
    random_similarity,
    subspace_similarity,
)
from graftwork.tuning import LoRA, as_delta


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def term(m: int, n: int, rank: int, seed: int = 0) -> LowRank:
    return LowRank(matrix(m, rank, seed=seed), matrix(rank, n, seed=seed + 50), 0.7)


@pytest.mark.parametrize("side", ["left", "right"])
def test_similarity_is_the_papers_sum_over_pairs_of_directions(side):
    a, b = term(9, 7, 3), term(9, 7, 5, seed=1)
    found = subspace_similarity(a, b, side)
    directions = []
    for one in (a, b):
        factor = one.left if side == "left" else one.right.T
        directions.append(torch.linalg.svd(factor.double(), full_matrices=False)[0])
    for i in range(3):
        for j in range(5):
            total = sum(
                float(directions[0][:, p] @ directions[1][:, q]) ** 2
                for p in range(i + 1)
                for q in range(j + 1)
            )
            assert float(found[i, j]) == pytest.approx(total / min(i + 1, j + 1), abs=1e-9)
    assert 0.0 <= float(found.min()) <= float(found.max()) <= 1.0 + 1e-12


def test_a_term_holds_itself_and_random_ones_share_what_chance_gives():
    a = term(40, 60, 4)
    same = subspace_similarity(a, LowRank(a.left * 3, a.right * -0.1))
    torch.testing.assert_close(same.diagonal(), torch.ones(4, dtype=torch.float64))
    shared = [
        float(subspace_similarity(term(40, 60, 4, seed=s), term(40, 60, 6, seed=s + 500))[-1, -1])
        for s in range(60)
    ]
    assert sum(shared) / 60 == pytest.approx(random_similarity(4, 6, 60), rel=0.1)
    with pytest.raises(DeltaError, match="60 and 50 right dimensions"):
        subspace_similarity(a, term(40, 50, 4))
    stack = LowRank(matrix(2, 3, 1), matrix(2, 1, 3))
    with pytest.raises(DeltaError, match="a stack of products"):
        subspace_similarity(stack, stack)


def test_amplification_is_the_ratio_of_table_7():
    weight, one = matrix(8, 3, 4, seed=3), term(8, 12, 2)
    found = amplification(weight, one)
    product = one.factor * (one.left @ one.right).double()
    u, _, vh = torch.linalg.svd(product, full_matrices=False)
    flat = weight.reshape(8, 12).double()
    along = (u[:, :2].T @ flat @ vh[:2].T).norm()
    assert found.size == pytest.approx(float(product.norm()))
    assert found.along_term == pytest.approx(float(along))
    assert found.factor == pytest.approx(float(product.norm() / along))
    assert found.along_weight == pytest.approx(float(torch.linalg.svdvals(flat)[:2].norm()))
    drawn = []
    for seed in range(300):
        a, b = (torch.linalg.qr(matrix(s, 2, seed=seed).double())[0] for s in (8, 12))
        drawn.append(float((a.T @ flat @ b).norm() ** 2))
    assert found.along_random == pytest.approx(math.sqrt(sum(drawn) / 300), rel=0.1)
    with pytest.raises(DeltaError, match="not \\(12, 8\\)"):
        amplification(flat.T, one)
    with pytest.raises(DeltaError, match="rank: 1 to 2"):
        amplification(weight, one, rank=3)


def trained(seed: int, rank: int):
    """LoRA on a linear map that differs from the base by one direction."""
    torch.manual_seed(0)
    base = plain_base(nn.Linear(24, 16, bias=False))
    wanted = base.model.weight + matrix(16, 1, seed=7) @ matrix(1, 24, seed=8) * 0.2
    tuner = LoRA(rank=rank, values_lr=0.02)
    attachment = tuner.attach(base, ["weight"], seed=seed)

    def loss(module: nn.Module, step: int) -> torch.Tensor:
        x = matrix(32, 24, seed=1000 + step)
        return (module(x) - F.linear(x, wanted)).square().mean()

    losses = run_stage(attachment, tuner.stages[0], loss, 150)
    assert losses[-1] < 0.1 * losses[0]
    return base, as_delta(base, attachment.extract())


def test_two_seeds_share_the_first_direction_and_the_rest_is_chance():
    """The finding of section 7.2, on a task whose difference has rank 1."""
    base, one = trained(0, 2)
    _, two = trained(1, 4)
    (report,), left_out = diagnose_low_rank(one, two, base)
    assert (report.name, report.rank, left_out) == ("weight", 2, [])
    assert (len(report.left), len(report.left[0])) == (2, 4)
    assert report.left[0][0] > 0.95
    assert report.right[0][0] > 0.8
    assert report.random == 4 / 24
    assert report.amplification.factor > 1.0
    assert report.to_json()["rank"] == 2
    (alone,), _ = diagnose_low_rank(one)
    assert alone.amplification is None
    assert alone.right == ()


def test_what_cannot_be_analysed_is_said():
    base, one = trained(0, 2)
    full = as_delta(base, {"weight": Update((16, 24), dense=matrix(16, 24))})
    with pytest.raises(DeltaError, match="no weight has a low-rank term to analyse; train"):
        diagnose_low_rank(full)
    stack = Update((2, 3, 3), low_rank=LowRank(matrix(2, 3, 1), matrix(2, 1, 3)))
    mixed = Delta({**one.updates, "experts": stack})
    reports, left_out = diagnose_low_rank(mixed)
    assert (len(reports), left_out) == (1, ["experts"])
    other = torch.nn.Linear(4, 4)
    foreign = load(other)
    update = Update((4, 4), low_rank=LowRank(quantise(matrix(4, 1), "float16"), matrix(1, 4)))
    made = Delta({"weight": update}, fingerprint=fingerprint_of(foreign, ["weight"]))
    another = load(torch.nn.Linear(4, 4))
    with pytest.raises(FingerprintError):
        diagnose_low_rank(made, base=another)
