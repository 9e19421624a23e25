"""The claim `uwac` runs at smoke scale, and its instruments would notice a fault."""

import pytest
import torch

from graftwork.claims import CLAIMS, _control, report, run_claim
from graftwork.claims import uwac as claim
from graftwork.domains.control import ReplayStream
from graftwork.errors import InputError


@pytest.fixture(scope="module")
def smoke():
    said = []
    return run_claim(CLAIMS["uwac"], "smoke", seeds=(0,), progress=said.append), said


def test_smoke_passes_every_mechanism(smoke):
    entries = {e["name"].split("/")[1]: e for e in report(CLAIMS["uwac"], smoke[0])}
    exact = [n for n, e in entries.items() if e["kind"] == "mechanism"]
    assert len(exact) == 6
    assert {entries[n]["verdict"] for n in exact} == {"pass"}
    judged = {n: e["verdict"] for n, e in entries.items() if e["kind"] == "difference"}
    assert set(judged) == {"bounded", "bear-runs-away", "knows-random-actions"}
    assert "not run" not in judged.values()


def test_smoke_measures_every_method(smoke):
    rows = [r["method"] for r in smoke[0]["rows"] if r["metric"] == "target Q"]
    assert rows == list(claim.methods(claim.SCALES["smoke"]))
    assert len(smoke[1]) == 5
    certain = {r["method"]: r["value"] for r in smoke[0]["rows"] if r["metric"] == "AUROC"}
    assert certain["bear"] == certain["no dropout"] == certain["chance"] == 0.5


def test_methods_differ_in_what_their_names_say():
    found = claim.methods(claim.SCALES["quick"])
    seen = {
        name: (c.critics.dropout > 0, c.weighting != "none", c.critics.spectral, c.copies)
        for name, c in found.items()
    }
    assert seen == {
        "uwac": (True, True, True, 8),
        "no spectral norm": (True, True, False, 8),
        "no weights": (True, False, True, 8),
        "no dropout": (False, False, True, 1),
        "bear": (False, False, False, 1),
    }
    same = {(c.warmup, c.candidates, c.limit, c.critic_lr, c.discount) for c in found.values()}
    assert len(same) == 1


def test_instruments_notice_a_wrong_formula(monkeypatch):
    assert max(_control.deviations(3).values()) < 1e-13
    for name, change in {
        "bellman_target": lambda *a, f=_control.bellman_target: f(*a, share=0.7),
        "uncertainty_weights": lambda v, *a, f=_control.uncertainty_weights: f(v + 0.01, *a),
        "mmd": lambda x, y, *, kernel, sigma, f=_control.mmd: f(x, y, sigma=2 * sigma),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(_control, name, change)
            assert max(_control.deviations(3).values()) > 1e-4


def test_methods_of_a_seed_see_the_same_batches():
    log = _control.made_log(1)
    first, second = (ReplayStream(data=log, batch_size=8, seed=2) for _ in range(2))
    assert torch.equal(first.draw().rows, second.draw().rows)
    assert _control.made_log(1).digest == log.digest != _control.made_log(2).digest


def test_missing_data_is_named_with_its_origin(tmp_path):
    with pytest.raises(InputError, match=r"door_human_demos\.npz.*aravindr93/hand_dapg"):
        claim.run("quick", 0, tmp_path, print)
