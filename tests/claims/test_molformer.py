"""The claim `molformer` runs at smoke scale, and its instruments would notice a fault."""

import importlib.util
import math

import pytest
import torch

from graftwork.claims import _attention as attention
from graftwork.claims import _molecules as molecules
from graftwork.claims import molformer as claim
from graftwork.claims import report, run_claim

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("rdkit") is None, reason="needs the extra 'molecules'"
)


@pytest.fixture(scope="module")
def smoke():
    said = []
    return run_claim(claim.CLAIM, "smoke", seeds=(0,), progress=said.append), said


def test_smoke_passes_every_mechanism(smoke):
    entries = report(claim.CLAIM, smoke[0])
    exact = [e for e in entries if e["kind"] == "mechanism"]
    assert len(exact) == len(claim.MECHANISMS)
    assert {e["name"]: e["verdict"] for e in exact if e["verdict"] != "pass"} == {}


def test_every_way_to_learn_is_measured(smoke):
    rows = smoke[0]["rows"]
    few = {r["method"] for r in rows if r["setting"] == "made by rule, few labels"}
    assert few == {*claim.tuners(claim.SCALES["smoke"])}
    frozen = {r["method"] for r in rows if r["setting"] == "made by rule, frozen"}
    assert frozen == {"pretrained", "random init", "bag of tokens"}
    sizes = {r["method"]: r["value"] for r in rows if r["metric"] == "bytes"}
    assert sizes["pretrained, random mask"] < 0.5 * sizes["pretrained"]
    assert len(smoke[1]) == 1 + 4 + 3 + 2


def test_a_wrong_form_of_linear_attention_is_noticed(monkeypatch):
    right = attention.linear_attention

    def shifted(q, k, v, mask=None, *, causal=False):
        return right(q, k, v, mask, causal=causal) + (1e-4 if causal else 0)

    monkeypatch.setattr(attention, "linear_attention", shifted)
    assert attention.quadratic_error(torch.float32, 0) > 1e-5


def test_a_rotation_of_neighbours_is_noticed(monkeypatch):
    right = attention.rotary
    monkeypatch.setattr(attention, "rotary", lambda x: right(x.flip(-1)).flip(-1))
    assert attention.rotary_error(0) > 1e-3


def test_slopes_of_known_costs():
    costs = {"linear": 1.0, "softmax": 2.0}
    found = attention.exponents(lambda kind, n: 3.0 * n ** costs[kind], (64, 128, 512))
    assert found == pytest.approx(costs)
    assert attention.operations("softmax", 128) == 4 * attention.operations("softmax", 64)
    assert attention.seconds("linear", 64) > 0


def test_few_labels_are_disjoint_and_differ_by_seed():
    data = molecules.labelled(molecules.MADE, None, 150)
    parts = molecules.few(data, 40, 0)
    sets = [set(table["smiles"]) for table in (parts.train, parts.valid, parts.test)]
    assert [len(t) for t in (parts.train, parts.valid)] == [40, 13]
    assert len(sets[0]) <= 40
    other = molecules.few(data, 40, 1)
    assert parts.train["smiles"] != other.train["smiles"]
    assert all(math.isfinite(v) for v in parts.test["value"])


def test_made_molecules_are_molecules():
    data = molecules.labelled(molecules.MADE, None, 150)
    assert data.report.valid.all()
    assert len(set(molecules.corpus(None, 80, 200))) > 100
