"""The claim `diff-pruning` runs at smoke scale, and its instruments would notice a fault."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from graftwork.claims import CLAIMS, PILOT_SEEDS, published_result, report, rule_hash, run_claim
from graftwork.claims import _checks as checks
from graftwork.claims import diff_pruning as claim
from graftwork.claims._images import SHIFTS, RowReader, Sizes, pictures, prepare
from graftwork.errors import InputError
from graftwork.tuning import HardConcrete, RandomMask

TINY = Sizes(
    source="digits",
    width=8,
    layers=1,
    heads=2,
    pretrain_rows=200,
    pretrain_steps=10,
    train_rows=100,
    test_rows=60,
)


@pytest.fixture(scope="module")
def smoke():
    said = []
    return run_claim(CLAIMS["diff-pruning"], "smoke", seeds=(0,), progress=said.append), said


def test_smoke_passes_every_mechanism_that_does_not_depend_on_size(smoke):
    entries = {e["name"].split("/")[1]: e for e in report(CLAIMS["diff-pruning"], smoke[0])}
    exact = [n for n, e in entries.items() if e["kind"] == "mechanism"]
    assert len(exact) == 7
    # five heads and headers beside a base of 27 kB are more than a tenth of it
    assert {entries[n]["verdict"] for n in exact if n != "five-tasks-in-a-tenth"} == {"pass"}
    assert any("five tasks" in line for line in smoke[1])


def test_smoke_measures_every_method(smoke):
    rows = [r for r in smoke[0]["rows"] if r["metric"] == "accuracy" and r["setting"] == "2 %"]
    assert [r["method"] for r in rows] == list(claim.tuners(0.02, claim.Rates()))
    kept = {r["method"] for r in smoke[0]["rows"] if r["metric"] == "kept"}
    assert kept == set(claim.SPARSE)


def test_the_judged_base_has_the_size_of_the_spec():
    sizes = claim.SCALES["quick"].sizes
    base = RowReader(28, sizes.width, sizes.layers, sizes.heads)
    entries = sum(p.numel() for p in base.parameters())
    assert (entries, math.floor(0.005 * entries)) == (59_376, 296)


def test_closed_forms_agree_with_numerical_integration():
    gate = HardConcrete()
    for alpha in (-4.0, 0.5, 5.0):

        def z(u, alpha=alpha):
            s = 1 / (1 + math.exp(-(math.log(u / (1 - u)) + alpha)))
            return min(1.0, max(0.0, 3 * s - 1.5))

        mean = integrate.quad(z, 0, 1, points=[1 / (1 + math.exp(alpha))], limit=400)[0]
        u = torch.rand(200_000, generator=torch.Generator().manual_seed(3))
        sampled = gate.sample(torch.full(u.shape, alpha), u).double().mean()
        assert float(sampled) == pytest.approx(mean, abs=3e-3)
    assert checks.gate_deviation(0) < 3e-3


def test_gate_deviation_notices_a_wrong_gate(monkeypatch):
    monkeypatch.setattr(checks, "HardConcrete", lambda: HardConcrete(low=-1.4))
    assert checks.gate_deviation(0) > 6e-3


def test_a_moved_entry_and_a_changed_base_are_noticed():
    transfer = prepare(TINY, 0, None)
    before = checks.digest(transfer.base)
    task = transfer.task(claim.TARGET)
    adaptation, delta, _ = checks.learn(transfer, task, RandomMask(share=0.05), 5)
    assert checks.moved_elsewhere(transfer.base, adaptation, delta) == 0
    entries = sum(piece.numel for piece in transfer.base.names.pieces.values())
    assert checks.kept_in(delta) == math.floor(0.05 * entries)
    free = [n for n in transfer.base.names.pieces if n not in delta.updates]
    assert checks.digest(transfer.base) == before
    with torch.no_grad():
        target = adaptation.attachment.module.get_parameter("embed.weight").view(-1)
        taken = set(delta.updates["embed.weight"].sparse.positions.tolist())
        target[next(i for i in range(target.numel()) if i not in taken)] += 1
    assert checks.moved_elsewhere(transfer.base, adaptation, delta) == 1, free
    with torch.no_grad():
        transfer.base.model.get_parameter("norm.bias")[0] += 1e-3
    assert checks.digest(transfer.base) != before


def test_sets_share_no_picture_and_follow_the_seed():
    one, same, other = (prepare(TINY, seed, None) for seed in (0, 0, 1))
    assert not set(one.train) & set(one.test)
    assert np.array_equal(one.test, same.test)
    assert not np.array_equal(one.test, other.test)
    assert checks.digest(one.base) == checks.digest(same.base) != checks.digest(other.base)


def test_shifts_keep_the_content():
    source = pictures("digits", None)
    few = source.pixels[:3]
    for name, shift in SHIFTS.items():
        shifted = shift(few, source.peak)
        back = source.peak - shifted if name == "inverted" else shifted
        assert np.array_equal(np.sort(back, axis=None), np.sort(few, axis=None)), name
        assert not np.array_equal(shifted, few), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_full_scale_without_a_gpu_says_so():
    with pytest.raises(InputError, match="needs a GPU"):
        run_claim(CLAIMS["diff-pruning"], "full", seeds=(0,))


def test_without_mnist_the_error_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match="MNIST test split"):
        prepare(claim.SCALES["quick"].sizes, 0, tmp_path)


def test_smoke_of_one_rate_measures_the_methods_of_the_paper():
    result = run_claim(CLAIMS["diff-pruning-one-rate"], "smoke", seeds=(0,))
    rows = [r for r in result["rows"] if r["metric"] == "accuracy"]
    assert [r["method"] for r in rows] == list(claim.one_rate(0.02, None))
    entries = report(CLAIMS["diff-pruning-one-rate"], result)
    assert {e["verdict"] for e in entries if e["kind"] == "mechanism"} == {"pass"}
    stages = [s for t in claim.one_rate(0.005, 1e-4).values() for s in t.stages]
    assert {rate for s in stages for role, rate in s.learning_rates.items() if role != "gates"} == {
        1e-3
    }


@pytest.mark.parametrize("name", [n for n in CLAIMS if published_result(n) is not None])
def test_the_published_result_was_judged_under_these_rules(name):
    result = published_result(name)
    assert result["rule_hash"] == rule_hash(CLAIMS[name].rules)
    assert result["seeds"] == [10, 11, 12]
    assert not set(result["seeds"]) & set(PILOT_SEEDS)
    verdicts = {
        e["name"]: e["verdict"] for e in report(CLAIMS[name], result) if e["kind"] == "mechanism"
    }
    assert set(verdicts.values()) == {"pass"}, verdicts
