"""Merges against the papers' formulas in plain loops, and against PEFT's utilities where equal."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from peft.utils import merge_utils
from tests.battery.deltas import merged as merged_oracle
from tests.battery.deltas import trained_delta
from tests.battery.models import CASES
from torch import Tensor

from graftwork.bases import load
from graftwork.deltas import (
    METHODS,
    Delta,
    LowRank,
    MergeConfig,
    Sparse,
    Update,
    dumps,
    fingerprint_of,
    forget,
    loads,
    merge,
    negate,
    view,
)
from graftwork.errors import ConfigError, DeltaError, FingerprintError, UnknownNameError

SHAPE = (6, 5)


def dense(*seeds: int) -> list[Delta]:
    """Return deltas of one tensor in float64, so that nothing is rounded."""
    out = []
    for seed in seeds:
        values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).double()
        out.append(Delta({"w": Update(SHAPE, dense=values)}))
    return out


def changed(delta: Delta, name: str = "w") -> Tensor:
    update = delta.updates[name]
    return update.adapted(torch.zeros(update.shape, dtype=torch.float64))


def ties_loop(vectors: list[list[float]], density: float, weights: list[float]) -> list[float]:
    """Algorithm 1 of Yadav et al. (2023), entry by entry."""
    trimmed = []
    for vector in vectors:
        keep = math.floor(density * sum(1 for v in vector if v))
        kept = sorted((abs(v) for v in vector if v), reverse=True)[:keep]
        trimmed.append([v if v and keep and abs(v) >= kept[-1] else 0.0 for v in vector])
    out = []
    for entry in zip(*trimmed, strict=True):
        sign = 1 if sum(entry) >= 0 else -1
        agree = [w * v for w, v in zip(weights, entry, strict=True) if v * sign > 0]
        out.append(sum(agree) / max(len(agree), 1))
    return out


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0)])
def test_ties_is_the_papers_algorithm(density, weights):
    deltas = dense(0, 1, 2)
    config = MergeConfig(method="ties", density=density, weights=weights, stored="float64")
    found, report = merge(deltas, config)
    vectors = [changed(delta).reshape(-1).tolist() for delta in deltas]
    expected = ties_loop(vectors, density, list(weights or (1.0, 1.0, 1.0)))
    assert torch.allclose(changed(found).reshape(-1), torch.tensor(expected).double(), atol=1e-12)
    assert report.exact


@pytest.mark.parametrize("sign", ["total", "frequency"])
def test_ties_by_tensor_is_pefts(sign):
    deltas = dense(3, 4, 5)
    weights = torch.tensor([0.3, 1.0, 0.7]).double()
    config = MergeConfig(
        method="ties",
        density=0.5,
        trim="tensor",
        sign=sign,
        weights=tuple(weights.tolist()),
        stored="float64",
    )
    found, _ = merge(deltas, config)
    tensors = [changed(delta) for delta in deltas]
    expected = merge_utils.ties(tensors, weights, 0.5, sign)
    assert torch.allclose(changed(found), expected, atol=1e-12)


def test_linear_is_pefts_task_arithmetic():
    deltas, weights = dense(6, 7), torch.tensor([0.25, -1.5]).double()
    found, report = merge(deltas, MergeConfig(weights=(0.25, -1.5), stored="float64"))
    expected = merge_utils.task_arithmetic([changed(d) for d in deltas], weights)
    assert torch.allclose(changed(found), expected, atol=1e-14)
    assert report.exact
    mean, _ = merge(deltas, MergeConfig(stored="float64"))
    expected = merge_utils.task_arithmetic([changed(d) for d in deltas], weights * 0 + 0.5)
    assert torch.allclose(changed(mean), expected, atol=1e-14)


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_dare_drops_and_rescales(method):
    deltas = dense(8, 9)
    alone = MergeConfig(method=method, density=0.4, weights=(1.0,), stored="float64", seed=3)
    dropped = []
    for index, delta in enumerate(deltas):
        # the draw of a delta depends on its place, so an empty one is put before the second
        before = [Delta({"w": Update(SHAPE, dense=torch.zeros(SHAPE).double())})] * index
        weights = (1.0,) * (index + 1)
        config = MergeConfig(method="dare", density=0.4, weights=weights, stored="float64", seed=3)
        values = changed(merge([*before, delta], config)[0])
        original = changed(delta)
        assert all(
            v in (0.0, o / 0.4) for v, o in zip(values.flatten(), original.flatten(), strict=True)
        )
        dropped.append(values)
    assert 0.1 < float((dropped[0] != 0).double().mean()) < 0.7
    config = MergeConfig(method=method, density=0.4, weights=(1.0, 2.0), stored="float64", seed=3)
    found, _ = merge(deltas, config)
    weights = torch.tensor([1.0, 2.0]).double()
    if method == "dare":
        expected = merge_utils.task_arithmetic(dropped, weights)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = merge_utils.ties(dropped, weights, 1.0, "total")
    assert torch.allclose(changed(found), expected, atol=1e-12)
    assert dumps(merge(deltas, config)[0]) == dumps(found)
    other = MergeConfig(method=method, density=0.4, weights=(1.0, 2.0), stored="float64", seed=4)
    assert not torch.equal(changed(merge(deltas, other)[0]), changed(found))
    assert alone.density == 0.4


def test_dare_is_unbiased():
    (delta,) = dense(10)
    total = torch.zeros(SHAPE).double()
    for seed in range(400):
        config = MergeConfig(
            method="dare", density=0.5, weights=(1.0,), stored="float64", seed=seed
        )
        total += changed(merge([delta], config)[0])
    assert (total / 400 - changed(delta)).abs().max() < 0.35


def test_svd_is_the_nearest_matrix_and_its_error_is_that_of_eckart_and_young():
    deltas = dense(11, 12)
    found, report = merge(deltas, MergeConfig(method="svd", rank=2, stored="float64"))
    mean = sum(changed(delta) for delta in deltas) / 2
    sizes = torch.linalg.svdvals(mean)
    assert found.updates["w"].terms == ("low_rank",)
    assert report.error == pytest.approx(float(sizes[2:].norm() / sizes.norm()), rel=1e-9)
    left, values, right = torch.linalg.svd(mean, full_matrices=False)
    assert torch.allclose(changed(found), left[:, :2] * values[:2] @ right[:2], atol=1e-12)
    with pytest.raises(DeltaError, match="svd needs a rank, and no delta has a low-rank term"):
        merge(deltas, MergeConfig(method="svd"))


def kinds() -> list[Delta]:
    """One sparse, one low-rank and one dense delta of the same tensor."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, generator=generator).double()
    low = LowRank(torch.randn(6, 2).double(), torch.randn(2, 5).double(), 0.5)
    return [
        Delta({"w": Update(SHAPE, sparse=Sparse(torch.tensor([0, 7, 8, 29]), values))}),
        Delta({"w": Update(SHAPE, low_rank=low)}),
        dense(13)[0],
    ]


@pytest.mark.parametrize("method", METHODS)
def test_kinds_merge_as_the_matrices_they_make(method):
    torch.manual_seed(0)
    deltas = kinds()
    plain = [Delta({"w": Update(SHAPE, dense=changed(delta))}) for delta in deltas]
    config = MergeConfig(method=method, density=0.5, stored="float64", rank=3)
    one, two = merge(deltas, config)[0], merge(plain, config)[0]
    assert torch.allclose(changed(one), changed(two), atol=1e-9)
    if method == "linear":
        terms = merge(deltas, MergeConfig(stored="float64"))[0].updates["w"].terms
        assert terms == ("sparse", "low_rank", "dense")


def test_conflicts_are_counted():
    a = Delta({"w": Update((4,), dense=torch.tensor([1.0, 2.0, 0.0, -1.0]))})
    b = Delta({"w": Update((4,), dense=torch.tensor([-3.0, 1.0, 5.0, 0.0]))})
    _, report = merge([a, b], MergeConfig())
    assert (report.shared, report.conflicts) == (2, 1)
    assert report.against == pytest.approx(1 / 13)
    assert report.cosine == pytest.approx((-3 + 2) / math.sqrt(6 * 35))
    assert report.to_json()["tensors"][0]["conflicts"] == 1


@pytest.mark.parametrize("kind", ["sparse", "low_rank", "dense", "scale", "mixed"])
@pytest.mark.parametrize("name", ["bert", "conv", "experts"])
def test_law13_trained_deltas_of_every_kind_merge_as_their_weights_do(kind, name):
    case = CASES[name]
    base = load(case.build())
    parts = [trained_delta(case, base, kind, share=0.6, seed=seed) for seed in (0, 1)]
    config = MergeConfig(weights=(0.75, 0.5), stored="float32")
    found, report = merge(parts, config, base)
    found = loads(dumps(found))
    models = [merged_oracle(base, part) for part in parts]
    adapted = view(base, found, unused="allow")
    for parameter, value in adapted.state_dict().items():
        if not value.is_floating_point():
            continue
        before = base.model.state_dict()[parameter]
        terms = [m.state_dict()[parameter].double() - before.double() for m in models]
        expected = before.double() + 0.75 * terms[0] + 0.5 * terms[1]
        assert torch.allclose(value.double(), expected, atol=2e-2 if kind != "scale" else 1e-5)
    assert report.error < 2e-2
    for row in report.tensors:
        assert row.norm >= 0


def test_a_scale_needs_the_base():
    a = Delta({"w": Update((2,), scale=torch.tensor([2.0, 3.0]))})
    with pytest.raises(DeltaError, match="merge of 'w': a scale term is no difference without"):
        merge([a, a], MergeConfig())


def test_a_block_at_a_time_is_the_whole(monkeypatch):
    from graftwork.deltas import _entries, _merging

    deltas = kinds()
    config = MergeConfig(method="ties", density=0.3, stored="float64")
    whole = changed(merge(deltas, config)[0])
    sparse = [*deltas[:1] * 2, Delta({"w": Update(SHAPE, sparse=other_support())})]
    on_support = changed(merge(sparse, config)[0])
    monkeypatch.setattr(_entries, "BLOCK", 7)
    monkeypatch.setattr(_merging, "BLOCK", 3)
    assert torch.equal(changed(merge(deltas, config)[0]), whole)
    assert torch.equal(changed(merge(sparse, config)[0]), on_support)


def other_support() -> Sparse:
    return Sparse(torch.tensor([0, 1, 8, 12, 13, 28]), torch.linspace(-2, 3.5, 6).double())


@pytest.mark.parametrize("method", ["linear", "svd", "ties"])
def test_sparse_deltas_merge_on_their_support_as_their_matrices_do(method):
    a, b = kinds()[0], Delta({"w": Update(SHAPE, sparse=other_support())})
    plain = [Delta({"w": Update(SHAPE, dense=changed(delta))}) for delta in (a, b)]
    config = MergeConfig(method=method, density=0.6, stored="float64", rank=3)
    config = config if method == "svd" else dataclasses.replace(config, rank=None)
    (one, first), (two, second) = merge([a, b], config), merge(plain, config)
    assert torch.allclose(changed(one), changed(two), atol=1e-12)
    assert (first.shared, first.conflicts) == (second.shared, second.conflicts)
    # entries 0 and 8; the trim drops the second delta's 0.2 at 8
    assert (first.shared, first.conflicts) == ((1, 1) if method == "ties" else (2, 2))
    assert first.error == pytest.approx(second.error, abs=1e-12)
    assert first.cosine == pytest.approx(second.cosine)


def test_ports_signatures_and_bases():
    from graftwork.deltas import Port

    base = load(torch.nn.Linear(2, 1))
    update = Update((1,), dense=torch.ones(1))
    made = [
        Delta(
            {"bias": update},
            ports={"head": Port("head", {"n": n}, {})},
            signature={"labels": [n]},
            fingerprint=fingerprint_of(base, ["bias"]),
            provenance={"base": "org/b"},
        )
        for n in range(2)
    ]
    with pytest.raises(DeltaError, match="port 'head' differs between the deltas"):
        merge(made, MergeConfig())
    found, _ = merge(made, MergeConfig(ports_of=1))
    assert found.signature == {"labels": [1]}
    assert found.provenance["base"] == "org/b"
    assert found.provenance["operation"] == "merge"
    with pytest.raises(ConfigError, match="ports_of is 2, there are 2 deltas from 0"):
        merge(made, MergeConfig(ports_of=2))
    other = Delta(
        {"bias": update}, fingerprint=fingerprint_of(load(torch.nn.Linear(3, 1)), ["bias"])
    )
    with pytest.raises(FingerprintError, match="made for different bases"):
        merge([made[0], other], MergeConfig())


@pytest.mark.usefixtures("untyped")
def test_what_a_config_refuses():
    deltas = dense(0, 1)
    with pytest.raises(UnknownNameError, match="unknown merge method 'tie'; did you mean 'ties'"):
        MergeConfig(method="tie")  # type: ignore[arg-type]
    for values, message in (
        ({"density": 0.0}, "density is 0.0"),
        ({"rank": 0}, "rank is 0"),
        ({"weights": (math.inf, 1.0)}, "must be finite"),
        ({"stored": "float8"}, "unknown stored type"),
    ):
        with pytest.raises((ConfigError, UnknownNameError), match=message):
            MergeConfig(**values)
    with pytest.raises(ConfigError, match="3 weights for 2 deltas"):
        merge(deltas, MergeConfig(weights=(1.0, 1.0, 1.0)))
    with pytest.raises(DeltaError, match="a merge of no deltas is not defined"):
        merge([], MergeConfig())
    with pytest.raises(DeltaError, match="nothing is left after the merge"):
        merge(deltas[:1], MergeConfig(method="ties", density=0.01))
    shapes = [deltas[0], Delta({"w": Update((3,), dense=torch.ones(3))})]
    with pytest.raises(DeltaError, match=r"merge of 'w': shapes \[\(3,\), \(6, 5\)\] differ"):
        merge(shapes, MergeConfig())


def test_negate_and_forget_undo_what_was_learnt():
    case = CASES["bert"]
    base = load(case.build())
    delta = trained_delta(case, base, "low_rank", labels=3)
    undone, _ = merge([delta, negate(delta)], MergeConfig(weights=(1.0, 1.0)))
    worst = max(
        float(changed(undone, name).abs().max()) if name in undone.updates else 0.0
        for name in delta.updates
    )
    assert worst < 1e-2
    forgotten = forget(delta, 0.5)
    assert not forgotten.ports
    assert not forgotten.signature
    for name, update in forgotten.updates.items():
        ours = update.adapted(torch.zeros(update.shape))
        theirs = delta.updates[name].adapted(torch.zeros(update.shape))
        assert torch.allclose(ours, -0.5 * theirs, atol=1e-2)
    batch = case.batch(128, seed=9)
    with torch.no_grad():
        learnt = float(case.loss(view(base, delta), batch).mean())
        lost = float(case.loss(view(base, forgotten), batch).mean())
        before = float(case.loss(base.model, batch).mean())
    assert learnt < before < lost
    with pytest.raises(DeltaError, match="the amount to forget is 0"):
        forget(delta, 0.0)
