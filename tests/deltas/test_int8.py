"""Deltas and bases held in 8 bits: whose delta it is, in place, and moving it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork._errors import FingerprintError, UnsupportedError
from graftwork.bases import Base, load
from graftwork.deltas import (
    Delta,
    Fingerprint,
    LowRank,
    Sparse,
    Update,
    add,
    apply,
    between,
    dumps,
    fingerprint_of,
    float_of,
    loads,
    rebase,
    view,
)

pytest.importorskip("torchao.quantization", reason="needs the extra 'int8'")


def module() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def pair() -> tuple[Base, Base]:
    shared = module()
    return load(shared), load(shared, quantise="int8")


UPDATES = {
    "0.weight": Update((5, 6), sparse=Sparse(torch.tensor([2, 17]), torch.tensor([0.5, -1.0]))),
    "2.weight": Update(
        (3, 5),
        low_rank=LowRank(torch.ones(3, 1), torch.arange(5.0)[None], 0.1),
        scale=torch.tensor([[2.0], [1.0], [0.5]]),
    ),
}
BIAS = {"0.bias": Update((5,), dense=torch.ones(5))}


def made_on(base: Base, updates: dict[str, Update]) -> Delta:
    return Delta(updates, fingerprint=fingerprint_of(base, updates))


def test_a_view_is_the_equation_over_the_matrices_in_8_bits():
    _, base = pair()
    first, second = (float_of(base.model[i].weight).clone() for i in (0, 2))
    first.view(-1)[2] += 0.5
    first.view(-1)[17] -= 1.0
    second = (second + 0.1 * torch.ones(3, 1) @ torch.arange(5.0)[None]) * torch.tensor(
        [[2.0], [1.0], [0.5]]
    )
    adapted = view(base, made_on(base, UPDATES))
    assert torch.equal(adapted[0].weight, first)
    torch.testing.assert_close(adapted[2].weight, second, rtol=0, atol=1e-6)
    state = adapted.state_dict()
    assert torch.equal(state["0.weight"], first)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    plain = module()
    plain.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(adapted(x), plain(x))
    base.verify()


@pytest.mark.parametrize("updates", [UPDATES, BIAS], ids=["held in 8 bits", "untouched"])
def test_law02_a_delta_of_one_base_refuses_the_other(updates):
    floating, eight = pair()
    with pytest.raises(FingerprintError, match=r"an int8 one.*unquantised; load .*quantise='int8'"):
        view(floating, made_on(eight, updates))
    with pytest.raises(FingerprintError, match=r"is int8; load the base without quantise.*rebase"):
        view(eight, made_on(floating, updates))
    for base in (floating, eight):
        view(base, loads(dumps(made_on(base, updates))))


def test_an_import_without_a_fingerprint_is_checked_where_it_has_prints():
    floating, eight = pair()
    prints = floating.prints(BIAS)
    view(eight, Delta(BIAS, fingerprint=Fingerprint(prints, asserted=True)), unused="allow")
    touched = Fingerprint(floating.prints(UPDATES), asserted=True)
    with pytest.raises(FingerprintError, match=r"'0\.weight' is int8\[5, 6\]"):
        view(eight, Delta(UPDATES, fingerprint=touched))


def test_rebase_moves_it_both_ways_and_measures_the_rounding():
    floating, eight = pair()
    delta = made_on(floating, UPDATES)
    moved = rebase(delta, floating, eight)
    assert 0.001 < moved.base_change < 0.02  # a 255th of each row's largest value
    assert moved.delta.fingerprint.processing == {"quantise": "int8"}
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = view(floating, delta)(x), view(eight, moved.delta)(x)
    assert 0 < float((a - b).abs().max()) < 0.1
    back = rebase(moved.delta, eight, floating).delta
    assert back.fingerprint == delta.fingerprint


def test_law01_nothing_is_written_into_8_bits():
    _, base = pair()
    base.prints(base.names.pieces)
    with pytest.raises(UnsupportedError, match=r"'0\.weight' is held in 8 bits.*use view"):
        apply(base, made_on(base, UPDATES))
    base.verify()
    with apply(base, made_on(base, BIAS)):
        assert bool((base.model[0].bias == module()[0].bias + 1).all())
    base.verify()


def test_differences_are_taken_from_the_matrices_in_8_bits():
    _, base = pair()
    tuned = view(base, made_on(base, UPDATES)).state_dict()
    tuned = {
        k: v if not hasattr(v, "qdata") else float_of(v)  # those that the view leaves alone
        for k, v in tuned.items()
    }
    found = between(base, tuned)
    assert set(found.updates) == set(UPDATES)
    assert found.updates["0.weight"].sparse.positions.tolist() == [2, 17]
    view(base, found)


def test_deltas_of_the_two_bases_do_not_merge():
    floating, eight = pair()
    with pytest.raises(FingerprintError, match="'quantise' is int8 and no; move one"):
        add(made_on(floating, BIAS), made_on(eight, BIAS))
    assert add(made_on(eight, BIAS), made_on(eight, BIAS)).fingerprint.processing == {
        "quantise": "int8"
    }
