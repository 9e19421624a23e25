import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.deltas.strategies import same_delta, same_update, updates
from torch import nn

from graftwork import deltas
from graftwork._errors import DeltaError, FingerprintError, UnknownNameError
from graftwork.deltas import (
    Delta,
    Fingerprint,
    LowRank,
    NameMap,
    Piece,
    Port,
    SeededMask,
    Sparse,
    TensorPrint,
    Update,
)

ADDABLE = ("sparse", "low_rank", "dense")
RELATIVE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2, "int8": 3e-2}

# run-time type checkers look at random items, also while strategies draw
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside")


@st.composite
def pairs(draw):
    """Two deltas with tensors of their own and a shared one."""
    shape = tuple(draw(st.lists(st.integers(1, 8), min_size=1, max_size=3)))
    made = [{"shared": draw(updates("shared", shape, ADDABLE))} for _ in range(2)]
    products = [own["shared"].low_rank for own in made]
    assume(len({product.batched for product in products if product}) < 2)
    for own, name in zip(made, "ab", strict=True):
        if draw(st.booleans()):
            own[name] = draw(updates(name))
    return Delta(made[0]), Delta(made[1])


def tolerance(*parts):
    """Rounding of the coarsest stored type, against the largest number that is rounded."""
    size, relative = 0.0, 0.0
    for update in parts:
        stored = [update.dense, update.sparse and update.sparse.values]
        if update.low_rank:
            stored += [update.low_rank.left, update.low_rank.right]
            factors = [deltas.values_of(s).abs().max() for s in stored[-2:]]
            rank = update.low_rank.rank
            size += float(factors[0] * factors[1]) * rank * max(abs(update.low_rank.factor), 1)
        for part in [s for s in stored if s is not None]:
            values = deltas.values_of(part)
            size += float(values.abs().max()) if values.numel() else 0.0
            relative = max(relative, RELATIVE[deltas._quantise.stored_name(part)])
    return 4 * relative * size + 1e-9


@given(pairs(), st.integers(0, 2**31))
def test_sum_applies_as_the_sum_of_differences(pair, seed):
    a, b = pair
    total = deltas.add(a, b)
    parts = [d.updates["shared"] for d in pair]
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(parts[0].shape, generator=generator, dtype=torch.float64)
    expected = weight + sum(part.adapted(weight) - weight for part in parts)
    got = total.updates["shared"].adapted(weight)
    assert (got - expected).abs().max() <= tolerance(*parts)
    for name in "ab":
        for delta in pair:
            if name in delta.updates:
                assert same_update(total.updates[name], delta.updates[name])


@given(pairs())
def test_add_commutes(pair):
    a, b = pair
    one, two = deltas.add(a, b), deltas.add(b, a)
    assert one.updates.keys() == two.updates.keys()
    assert one.provenance == two.provenance
    ours, theirs = one.updates["shared"], two.updates["shared"]
    if ours.low_rank is None:
        assert same_update(ours, theirs)
        return
    zero = torch.zeros(ours.shape, dtype=torch.float64)
    # the ranks stand in another order, and blocks of 8 bits with them
    close = torch.allclose(ours.adapted(zero), theirs.adapted(zero), rtol=1e-6, atol=1e-9)
    assert close or "int8" in repr(parts_types(pair))


def parts_types(pair):
    low_rank = [d.updates["shared"].low_rank for d in pair]
    factors = [f for term in low_rank if term for f in (term.left, term.right)]
    return [deltas._quantise.stored_name(factor) for factor in factors]


@given(pairs())
def test_a_delta_minus_itself_is_zero(pair):
    a, _ = pair
    a = dataclasses.replace(a, updates={"shared": a.updates["shared"]})
    nothing = deltas.add(a, deltas.scale(a, -1.0)).updates["shared"]
    zero = torch.zeros(nothing.shape, dtype=torch.float64)
    # ranks are kept side by side, and 8-bit blocks of the folded factors are rounded again
    bound = tolerance(a.updates["shared"]) if nothing.low_rank else 0.0
    assert nothing.adapted(zero).abs().max() <= bound


@given(pairs(), st.floats(-3, 3))
def test_scale_scales_the_difference(pair, factor):
    a, _ = pair
    part = a.updates["shared"]
    a = dataclasses.replace(a, updates={"shared": part})
    zero = torch.zeros(part.shape, dtype=torch.float64)
    got = deltas.scale(a, factor).updates["shared"].adapted(zero)
    assert (got - factor * part.adapted(zero)).abs().max() <= 3 * tolerance(part)


def test_scale_by_one_changes_no_bit():
    delta = Delta({"w": Update((3, 4), scale=torch.ones(4), dense=torch.ones(3, 4).half())})
    assert same_update(deltas.scale(delta, 1.0).updates["w"], delta.updates["w"])


def sparse(positions, values, shape=(4, 3), mask=None):
    positions = torch.as_tensor(positions, dtype=torch.int64)
    return Update(shape, sparse=Sparse(positions, torch.as_tensor(values), mask))


def test_sparse_sum_is_exact_on_the_union():
    a = Delta({"w": sparse([0, 5, 7], [1.0, 2.0, 3.0])})
    b = Delta({"w": sparse([5, 9], [10.0, 20.0])})
    total = deltas.add(a, b).updates["w"].sparse
    assert total.positions.tolist() == [0, 5, 7, 9]
    assert total.values.tolist() == [1.0, 12.0, 3.0, 20.0]


def test_mean_rounds_once():
    one = torch.tensor([2049.0]).half()  # 2048 in float16, whose spacing is 2 there
    parts = [Delta({"w": sparse([0], v)}) for v in (one, one, torch.tensor([2051.0]))]
    mean = deltas.average(parts).updates["w"].sparse.values
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx((2048 + 2048 + 2051) / 3)


def test_mean_counts_absent_tensors_as_zero():
    mean = deltas.average([Delta({"w": sparse([1], [4.0])}), Delta({})])
    assert mean.updates["w"].sparse.values.tolist() == [2.0]
    with pytest.raises(DeltaError, match="average of no deltas"):
        deltas.average([])


def test_low_rank_sum_concatenates_ranks():
    def term(rank, factor):
        return LowRank(torch.randn(4, rank), torch.randn(rank, 3), factor)

    torch.manual_seed(0)
    for factors in [(0.5, 0.5), (0.5, 2.0)]:
        a, b = (
            Delta({"w": Update((4, 3), low_rank=term(r, f))})
            for r, f in zip((1, 2), factors, strict=True)
        )
        total = deltas.add(a, b).updates["w"].low_rank
        assert (total.left.shape, total.right.shape) == ((4, 3), (3, 3))
        assert total.factor == (0.5 if factors[0] == factors[1] else 1.0)


def test_batched_products_add_and_mix_with_no_others():
    torch.manual_seed(0)
    shape = (2, 4, 3)
    one, two = (LowRank(torch.randn(2, 4, r), torch.randn(2, r, 3), 0.5) for r in (1, 2))
    parts = [Delta({"w": Update(shape, low_rank=term)}) for term in (one, two)]
    total = deltas.add(*parts).updates["w"]
    assert total.low_rank.left.shape == (2, 4, 3)
    assert total.low_rank.rank == 3
    wanted = sum(0.5 * torch.einsum("emr,erk->emk", t.left, t.right) for t in (one, two))
    torch.testing.assert_close(total.adapted(torch.zeros(shape)), wanted)
    flat = Delta({"w": Update(shape, low_rank=LowRank(torch.randn(2, 1), torch.randn(1, 12)))})
    with pytest.raises(DeltaError, match="do not add as low-rank terms"):
        deltas.add(parts[0], flat)


def test_a_seeded_mask_survives_where_it_is_shared():
    mask = SeededMask(1, "w")
    positions = deltas.seeded_positions(mask, 12, 3)
    a, b = (Delta({"w": sparse(positions, torch.full((3,), v), mask=mask)}) for v in (1.0, 2.0))
    assert deltas.add(a, b).updates["w"].sparse.mask == mask
    assert deltas.scale(a, 2.0).updates["w"].sparse.mask == mask
    other = SeededMask(2, "w")
    c = Delta({"w": sparse(deltas.seeded_positions(other, 12, 3), torch.ones(3), mask=other)})
    total = deltas.add(a, c)
    assert total.updates["w"].sparse.mask is None
    deltas.dumps(total)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("float16", "float16"), "float16"),
        (("float16", "bfloat16"), "float32"),
        (("int8", "float16"), "float16"),
        (("int8", "int8"), "int8"),
        (("float16", "float64"), "float64"),
        (("float32", "bfloat16"), "float32"),
    ],
)
def test_the_widest_type_wins(kinds, expected):
    a, b = (Delta({"w": Update((2,), dense=deltas.quantise(torch.ones(2), k))}) for k in kinds)
    assert deltas._quantise.stored_name(deltas.add(a, b).updates["w"].dense) == expected


def test_scale_terms():
    ia3 = Delta({"w": Update((2, 3), scale=torch.tensor([1.0, 2.0, 0.5]))})
    half = deltas.scale(ia3, 0.5).updates["w"].scale
    assert half.tolist() == [1.0, 1.5, 0.75]
    with pytest.raises(DeltaError, match="add of 'w': a scale term adds only"):
        deltas.add(ia3, ia3)
    dora = Delta({"w": Update((2, 3), dense=torch.ones(2, 3), scale=torch.ones(3))})
    with pytest.raises(DeltaError, match="scale of 'w': a scale term"):
        deltas.scale(dora, 2.0)
    assert same_update(deltas.add(dora, Delta({})).updates["w"], dora.updates["w"])


def test_what_does_not_add_is_an_error():
    a = Delta({"w": sparse([0], [1.0])})
    with pytest.raises(DeltaError, match=r"add of 'w': shapes \(4, 3\) and \(12,\) differ"):
        deltas.add(a, Delta({"w": sparse([0], [1.0], (12,))}))
    with pytest.raises(DeltaError, match="factor nan is not finite"):
        deltas.scale(a, float("nan"))
    big = Delta({"w": sparse([0], torch.tensor([6e4]).half())})
    with pytest.raises(DeltaError, match="too large for float16"):
        deltas.add(big, big)


def test_ports_and_signatures_conflict_or_stay():
    def with_head(value, kind="classification"):
        head = Port("head", {"n": 1}, {"w": torch.full((2,), value)})
        return Delta({}, {"head": head}, {"kind": kind})

    assert same_delta(
        dataclasses.replace(deltas.add(with_head(1.0), with_head(1.0)), provenance={}),
        with_head(1.0),
    )
    assert deltas.add(Delta({}), with_head(1.0)).signature == {"kind": "classification"}
    with pytest.raises(DeltaError, match="port 'head' differs"):
        deltas.add(with_head(1.0), with_head(2.0))
    with pytest.raises(DeltaError, match="different signatures"):
        deltas.add(with_head(1.0), with_head(1.0, "regression"))


def test_fingerprints_must_agree_on_shared_tensors():
    def printed(digest, pooling="mean", name="w", asserted=False):
        prints = {name: TensorPrint((12,), "float32", digest)}
        return Delta({}, fingerprint=Fingerprint(prints, {"pooling": pooling}, asserted))

    joined = deltas.add(printed("a"), printed("b", name="v", asserted=True)).fingerprint
    assert set(joined.tensors) == {"v", "w"}
    assert joined.asserted
    for operation in (deltas.add, lambda a, b: deltas.average([a, b])):
        with pytest.raises(FingerprintError, match="different bases: 'w'"):
            operation(printed("a"), printed("b"))
        with pytest.raises(FingerprintError, match="different processing: 'pooling'"):
            operation(printed("a"), printed("a", pooling="cls"))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.norm = nn.BatchNorm1d(6)
        self.out = nn.Linear(6, 20, bias=False)
        self.out.weight = self.embed.weight


def make_base(model):
    names = deltas.identity_names(model)

    def prints(wanted):
        return {name: TensorPrint(names[name].shape, "float32", "0" * 16) for name in wanted}

    return SimpleNamespace(model=model, names=names, processing={"pooling": "mean"}, prints=prints)


def tuned_pair(share=1.0):
    torch.manual_seed(0)
    base, tuned = Net(), Net()
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in tuned.parameters():
            noise = torch.randn_like(parameter) * 0.01
            parameter += torch.where(torch.rand_like(noise) < share, noise, 0.0)
    return make_base(base), tuned


@pytest.mark.parametrize("stored", deltas.STORED)
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_between_leads_to_the_tuned_weights(stored, share):
    base, tuned = tuned_pair(share)
    delta = deltas.between(base, tuned, stored=stored)
    delta = deltas.loads(deltas.dumps(delta))
    assert set(delta.updates) == {"embed.weight", "norm.weight", "norm.bias"}
    assert delta.fingerprint.tensors.keys() == delta.updates.keys()
    assert delta.updates["embed.weight"].terms == (("dense",) if share == 1 else ("sparse",))
    wanted = dict(tuned.named_parameters())
    for name, parameter in base.model.named_parameters():
        got = delta.updates[name].adapted(parameter)
        error = (got - wanted[name]).abs().max()
        assert error <= RELATIVE[stored] * 0.05 + 1e-7


def test_between_with_keep_is_the_largest_of_all():
    base, tuned = tuned_pair()
    state = tuned.state_dict()
    names = ["embed.weight", "norm.weight", "norm.bias"]
    flat = np.concatenate(
        [(state[n] - base.model.state_dict()[n]).numpy().reshape(-1) for n in names]
    )
    largest = np.sort(np.argsort(-np.abs(flat), kind="stable")[:13])
    delta = deltas.between(base, state, keep=13, stored="float32")
    offsets = {n: sum(state[m].numel() for m in names[:i]) for i, n in enumerate(names)}
    found = {
        offsets[n] + int(p): float(v)
        for n, u in delta.updates.items()
        for p, v in zip(u.sparse.positions, u.sparse.values, strict=True)
    }
    assert sorted(found) == largest.tolist()
    assert [found[i] for i in sorted(found)] == flat[largest].tolist()
    share = deltas.between(base, state, keep=13.9 / flat.size)
    assert sum(u.sparse.positions.numel() for u in share.updates.values()) == 13


def test_between_breaks_ties_by_lowest_index_and_keeps_no_zero():
    base, tuned = tuned_pair(share=0.0)
    with torch.no_grad():
        tuned.embed.weight.view(-1)[[3, 50, 70]] += 0.5
        base.model.embed.weight.view(-1)[[3, 50, 70]] = 0.0
        tuned.embed.weight.view(-1)[[3, 50, 70]] = torch.tensor([0.5, -0.5, 0.5])
        tuned.norm.bias[2] = 0.5
    two = deltas.between(base, tuned, keep=2)
    assert two.updates["embed.weight"].sparse.positions.tolist() == [3, 50]
    assert "norm.bias" not in two.updates
    every = deltas.between(base, tuned, keep=100)
    assert every.updates["embed.weight"].sparse.positions.tolist() == [3, 50, 70]
    assert every.updates["norm.bias"].sparse.positions.tolist() == [2]


def test_between_finds_tensors_under_other_names():
    base, tuned = tuned_pair()
    names = base.names
    base.names = NameMap(names.pieces, {**names.aliases, **{f"net.{n}": n for n in names.pieces}})
    state = {f"net.{n}": p.detach() for n, p in tuned.named_parameters()}
    prefixed = deltas.between(
        base, {**state, "classifier.weight": torch.ones(1)}, ignore=["classifier.*"]
    )
    plain = deltas.between(base, tuned)
    assert all(same_update(prefixed.updates[n], plain.updates[n]) for n in plain.updates)


def test_between_cuts_fused_parameters_into_pieces():
    model = nn.Linear(3, 4, bias=False)
    pieces = {
        "gate": Piece("gate", "weight", (2, 3), (3, 1), 0, whole=False),
        "up": Piece("up", "weight", (2, 3), (3, 1), 6, whole=False),
    }
    base = make_base(model)
    base.names = NameMap(pieces)
    base.prints = lambda names: {}
    tuned = nn.Linear(3, 4, bias=False)
    with torch.no_grad():
        tuned.weight.copy_(model.weight)
        tuned.weight[3, 1] += 1.0
    for state in (tuned, {"gate": tuned.weight[:2], "up": tuned.weight[2:]}):
        delta = deltas.between(base, state)
        assert list(delta.updates) == ["up"]
        assert delta.updates["up"].sparse.positions.tolist() == [4]


def test_between_targets_limit_what_is_looked_at():
    base, tuned = tuned_pair()
    assert set(deltas.between(base, tuned, targets=["norm.*"]).updates) == {
        "norm.weight",
        "norm.bias",
    }
    with pytest.raises(UnknownNameError, match="parameter pattern"):
        deltas.between(base, tuned, targets=["encoder.*"])


def change(state, **changes):
    return {**state, **{k.replace("__", "."): v for k, v in changes.items()}}


@pytest.mark.parametrize(
    ("edit", "options", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "norm.bias"}, {}, "no tensor 'norm.bias'"),
        (lambda s: change(s, norm__bias=torch.ones(7)), {}, r"'norm.bias' has shape \(7,\)"),
        (lambda s: change(s, head__w=torch.ones(1)), {}, r"ignore=\['head.w'\]"),
        (lambda s: change(s, norm__running_mean=torch.ones(6)), {}, "buffer 'norm.running_mean'"),
        (lambda s: change(s, out__weight=torch.zeros(20, 6)), {}, "came apart.*embed.weight"),
        (lambda s: change(s, norm__bias=torch.full((6,), torch.nan)), {}, "NaN"),
        (lambda s: s, {"ignore": ["none*"]}, "pattern to ignore 'none"),
        (lambda s: s, {"keep": 0.001}, "keep=0.001 of 132 entries keeps no value"),
        (lambda s: s, {"keep": 0}, "keep must be a share"),
        (lambda s: s, {"keep": 133}, "keep must be a share"),
        (lambda s: s, {"keep": 1.5}, "keep must be a share"),
        (lambda s: s, {"keep": True}, "keep must be a share"),
    ],
)
def test_between_is_strict(edit, options, message):
    base, tuned = tuned_pair()
    with pytest.raises((DeltaError, UnknownNameError), match=message):
        deltas.between(base, edit(tuned.state_dict()), **options)


def test_between_of_the_base_itself_is_an_error():
    base, _ = tuned_pair()
    with pytest.raises(DeltaError, match="no entry of the targets differs"):
        deltas.between(base, base.model)


def test_between_ignores_buffers_on_request():
    base, tuned = tuned_pair()
    tuned.norm.running_mean += 1
    deltas.between(base, tuned, ignore=["norm.running_mean"])


@settings(max_examples=40)
@given(pairs())
def test_diff_against_dense_arithmetic(pair):
    a, b = pair
    report = deltas.diff(a, b)
    zero = torch.zeros(a.updates["shared"].shape, dtype=torch.float64)
    x, y = (d.updates["shared"].adapted(zero).reshape(-1) for d in pair)
    tensor = next(t for t in report.tensors if t.name == "shared")
    assert tensor.distance == pytest.approx(float((x - y).norm()), abs=1e-9)
    if x.norm() and y.norm():
        expected = float(x @ y / x.norm() / y.norm())
        assert tensor.cosine == pytest.approx(expected, abs=1e-9)
    json.dumps(report.to_json())


def test_diff_reports_supports_ports_and_fields():
    head = Port("head", {}, {"w": torch.ones(1)})
    a = Delta(
        {"x": sparse([1, 2, 3], [1.0, 1.0, 1.0]), "only": sparse([0], [2.0])},
        {"head": head, "prompt": head},
        {"labels": ["no", "yes"], "call": {"max_length": 64}},
        Fingerprint({"x": TensorPrint((4, 3), "float32", "1")}, {"pooling": "mean"}),
        {"seed": 0},
    )
    b = Delta(
        {"x": sparse([2, 3, 4], [1.0, -1.0, 1.0]), "scaled": Update((2,), scale=torch.ones(2))},
        {"head": Port("head", {}, {"w": torch.zeros(1)}), "input": head},
        {"labels": ["no", "yes"], "call": {"max_length": 128}},
        Fingerprint({"x": TensorPrint((4, 3), "float32", "2")}, {"pooling": "cls"}),
        {"seed": 1},
    )
    report = deltas.diff(a, b)
    x = next(t for t in report.tensors if t.name == "x")
    assert (x.status, x.overlap, x.cosine, x.changed) == ("changed", 0.5, 0.0, (3, 3))
    assert {t.name: t.status for t in report.tensors if t.name != "x"} == {
        "only": "only in a",
        "scaled": "only in b",
    }
    assert report.ports == {"head": "changed", "input": "only in b", "prompt": "only in a"}
    assert report.signature == {"call.max_length": (64, 128)}
    assert report.provenance == {"seed": (0, 1)}
    assert report.bases == ("x", "pooling")
    assert report.overlap == pytest.approx(2 / 5)
    assert report.distance == pytest.approx(np.sqrt(1 + 0 + 4 + 1 + 4))
    assert not report.same
    json.dumps(report.to_json())


def test_diff_of_equal_deltas_is_same_whatever_their_provenance():
    a = Delta({"w": sparse([1], [2.0])}, provenance={"seed": 0})
    report = deltas.diff(a, dataclasses.replace(a, provenance={"seed": 1}))
    assert report.same
    assert (report.overlap, report.cosine, report.distance) == (1.0, 1.0, 0.0)
    with pytest.raises(DeltaError, match=r"\(4, 3\) in one delta and \(12,\)"):
        deltas.diff(a, Delta({"w": sparse([1], [2.0], (12,))}))
