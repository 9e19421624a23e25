"""Smaller deltas, and deltas from checkpoints by a budget: the reported loss is the loss."""

from __future__ import annotations

import math

import pytest
import torch
from tests.battery.deltas import KINDS, trained_delta, tuned_state
from tests.battery.models import CASES
from torch import Tensor

from graftwork.bases import load
from graftwork.deltas import (
    CompressConfig,
    Delta,
    ExtractConfig,
    LowRank,
    SeededMask,
    Sparse,
    Update,
    compress,
    dumps,
    extract,
    loads,
    low_rank_between,
    seeded_positions,
    values_of,
    view,
)
from graftwork.errors import ConfigError, DeltaError, UnknownNameError


def matrices(delta: Delta, like: Delta) -> Tensor:
    """Return all differences as one vector, scales left aside."""
    parts = []
    for name, update in like.updates.items():
        mine = delta.updates.get(name)
        zero = torch.zeros(update.shape, dtype=torch.float64)
        if mine is None or mine.terms == ("scale",):
            parts.append(zero.reshape(-1))
        else:
            plain = Update(mine.shape, mine.sparse, mine.low_rank, mine.dense)
            parts.append(plain.adapted(zero).reshape(-1))
    return torch.cat(parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keep", "stored"), [(1.0, "int8"), (0.5, None), (0.3, "int8")])
def test_the_reported_loss_is_the_loss(kind, keep, stored):
    case = CASES["bert"]
    base = load(case.build())
    delta = trained_delta(case, base, kind, labels=3)
    if kind == "scale" and keep < 1:
        pytest.skip("a scale has no entries to thin out")
    small, report = compress(delta, CompressConfig(keep=keep, stored=stored))
    assert report.bytes_before == len(dumps(delta))
    assert report.bytes_after == len(dumps(small))
    before, after = matrices(delta, delta), matrices(loads(dumps(small)), delta)
    norm = float(before.norm())
    expected = float((before - after).norm()) / norm if norm else 0.0
    assert report.error == pytest.approx(expected, abs=1e-9)
    if (kind, keep) == ("dense", 1.0):
        # these are stored in 8 bits already
        assert report.error == 0.0
    elif kind != "scale":
        assert report.bytes_after < report.bytes_before
        assert 0 < report.error < 1
    for name, update in small.updates.items():
        assert (update.scale is None) == (delta.updates[name].scale is None)
    assert report.to_json()["error"] == report.error


def test_the_largest_values_stay_over_the_whole_delta():
    a = Sparse(torch.tensor([1, 4, 6]), torch.tensor([5.0, -0.1, 0.3]))
    b = torch.tensor([0.2, -4.0, 3.0])
    delta = Delta({"a": Update((9,), sparse=a), "b": Update((3,), dense=b)})
    small, report = compress(delta, CompressConfig(keep=0.5))
    kept = small.updates["a"].sparse
    assert kept is not None
    assert kept.positions.tolist() == [1]
    assert small.updates["b"].adapted(torch.zeros(3)).tolist() == [0.0, -4.0, 3.0]
    lost = math.sqrt((0.1**2 + 0.3**2 + 0.2**2) / float(25 + 0.01 + 0.09 + 0.04 + 16 + 9))
    assert report.error == pytest.approx(lost)
    tiny, report = compress(delta, CompressConfig(keep=1 / 6))
    assert report.dropped == ("b",)
    assert list(tiny.updates) == ["a"]
    with pytest.raises(DeltaError, match=r"keep=0\.1 leaves nothing of the delta"):
        compress(delta, CompressConfig(keep=0.1))


def test_ranks_go_where_the_energy_is():
    torch.manual_seed(0)

    def product(sizes):
        left, _ = torch.linalg.qr(torch.randn(8, len(sizes)))
        right, _ = torch.linalg.qr(torch.randn(6, len(sizes)))
        return LowRank(left * torch.tensor(sizes), right.T.contiguous(), 2.0)

    delta = Delta(
        {
            "strong": Update((8, 6), low_rank=product([5.0, 4.0])),
            "weak": Update((8, 6), low_rank=product([3.0, 0.1])),
        }
    )
    small, report = compress(delta, CompressConfig(keep=0.75))
    ranks = {n: u.low_rank.rank for n, u in small.updates.items() if u.low_rank}
    assert ranks == {"strong": 2, "weak": 1}
    assert report.error == pytest.approx(0.1 / math.sqrt(25 + 16 + 9 + 0.01), rel=1e-4)
    small, report = compress(delta, CompressConfig(keep=0.5))
    assert list(small.updates) == ["strong"]
    assert report.tensors["weak"] == 1.0


def test_a_seeded_mask_stays_where_nothing_is_thinned_out():
    mask = SeededMask(3, "w")
    positions = seeded_positions(mask, 100, 10)
    sparse = Sparse(positions, torch.linspace(-1, 1, 10), mask)
    delta = Delta({"w": Update((100,), sparse=sparse)})
    kept = compress(delta, CompressConfig(stored="float16"))[0].updates["w"].sparse
    assert kept is not None
    assert kept.mask == mask
    thin = compress(delta, CompressConfig(keep=0.5))[0].updates["w"].sparse
    assert thin is not None
    assert thin.mask is None
    # five were asked for; values of one magnitude stay together
    assert values_of(thin.values).abs().min() > 0.5
    assert thin.positions.numel() == 6


@pytest.mark.parametrize("kind", ["sparse", "low_rank", "mixed"])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_budget_is_met_with_less_loss_than_the_ends(kind, share):
    case = CASES["gpt2"]
    base = load(case.build())
    delta = trained_delta(case, base, kind)
    size = len(dumps(delta))
    budget = int(share * size)
    small, report = compress(delta, CompressConfig(budget_bytes=budget))
    assert report.bytes_after <= budget
    assert report.bytes_after > 0.8 * budget or report.keep == 1.0
    rivals = [
        compress(delta, CompressConfig(keep=keep, stored=stored))[1]
        for keep in (0.2, 0.6)
        for stored in (None, "int8")
    ]
    fitting = [rival.error for rival in rivals if rival.bytes_after <= budget]
    assert fitting
    assert all(report.error <= error for error in fitting)
    assert view(base, small, unused="allow") is not None


def test_a_budget_that_nothing_meets():
    delta = Delta({"w": Update((50,), dense=torch.linspace(1, 2, 50))})
    with pytest.raises(DeltaError, match="no share of its values fits 100"):
        compress(delta, CompressConfig(budget_bytes=100))
    whole, report = compress(delta, CompressConfig(budget_bytes=10**6))
    assert report.error == 0.0
    assert torch.equal(values_of(whole.updates["w"].dense), torch.linspace(1, 2, 50))  # type: ignore[arg-type]
    for values in ({"keep": 0.0}, {"budget_bytes": 0}, {"budget_bytes": 9, "keep": 0.5}):
        with pytest.raises(ConfigError):
            CompressConfig(**values)
    with pytest.raises(UnknownNameError):
        CompressConfig(stored="int4")


@pytest.mark.parametrize("name", ["bert", "conv"])
@pytest.mark.parametrize("kind", ["sparse", "low_rank"])
def test_a_checkpoint_within_a_budget(name, kind):
    case = CASES[name]
    base = load(case.build())
    tuned = tuned_state(name)
    errors = []
    for budget in (2_500, 5_000, 9_000):
        found = extract(base, tuned, ExtractConfig(budget_bytes=budget, kind=kind))
        assert found.bytes == len(dumps(found.delta)) <= budget
        errors.append(found.error)
        squares = norms = 0.0
        adapted = view(base, found.delta, unused="allow").state_dict()
        for parameter, after in tuned.items():
            squares += float((adapted[parameter].double() - after.double()).square().sum())
            before = base.model.state_dict()[parameter].double()
            norms += float((after.double() - before).square().sum())
        assert found.error == pytest.approx(math.sqrt(squares / norms), rel=1e-3)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] < 1
    batch = case.batch(64, seed=5)
    with torch.no_grad():
        ours = float(case.loss(view(base, found.delta, unused="allow"), batch).mean())
        assert ours < float(case.loss(base.model, batch).mean())


def test_low_rank_between_is_the_nearest_of_its_rank():
    case = CASES["bert"]
    base = load(case.build())
    tuned = tuned_state("bert")
    delta = low_rank_between(base, tuned, 2, targets=["*query.weight", "*query.bias"])
    for name, update in delta.updates.items():
        parameter = base.names[name].parameter
        change = tuned[parameter] - base.model.get_parameter(parameter)
        if change.dim() == 1:
            assert update.terms == ("dense",)
            continue
        sizes = torch.linalg.svdvals(change)
        lost = update.adapted(torch.zeros(update.shape)) - change
        assert float(lost.norm()) == pytest.approx(float(sizes[2:].norm()), rel=1e-2)
    with pytest.raises(DeltaError, match="rank is 0"):
        low_rank_between(base, tuned, 0)
    with pytest.raises(DeltaError, match="no entry of the targets differs"):
        low_rank_between(base, base.model, 2)


@pytest.mark.usefixtures("untyped")
def test_extraction_refuses():
    case = CASES["bert"]
    base = load(case.build())
    for kind in ("sparse", "low_rank"):
        with pytest.raises(DeltaError, match="a delta of one value takes more than 50 bytes"):
            extract(base, tuned_state("bert"), ExtractConfig(budget_bytes=50, kind=kind))
    with pytest.raises(UnknownNameError, match="unknown kind of extraction 'lora'"):
        ExtractConfig(budget_bytes=1, kind="lora")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="it must be positive"):
        ExtractConfig(budget_bytes=0)
