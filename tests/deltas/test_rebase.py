"""Moving a delta to a new version of its base: the same terms, and what was measured."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tests.battery.deltas import KINDS, trained_delta
from tests.battery.models import CASES
from torch import nn

from graftwork._errors import DeltaError, FingerprintError, UnknownNameError
from graftwork.bases import load
from graftwork.deltas import content_hash, dumps, loads, rebase, view


def versions(name: str, size: float):
    """A base, and one whose weights have all moved by `size` of their norm."""
    case = CASES[name]
    old = load(case.build())
    model = copy.deepcopy(old.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            moved = torch.randn(parameter.shape, generator=generator)
            scale = size * parameter.norm() / moved.norm().clamp(min=1e-12)
            parameter.add_(moved * scale)
    return case, old, load(model)


@pytest.mark.parametrize("kind", KINDS)
def test_the_difference_is_kept_and_the_move_is_measured(kind):
    case, old, new = versions("bert", 0.1)
    delta = trained_delta(case, old, kind, labels=3)
    delta = dataclasses.replace(delta, provenance={"metrics": {"accuracy": 1.0}, "seed": 3})
    moved = rebase(delta, old, new)
    assert moved.delta.provenance == {"seed": 3, "rebased": content_hash(delta)}
    again = loads(dumps(moved.delta))
    found = view(new, again, unused="allow")
    assert {tensor.name for tensor in moved.tensors} == set(delta.updates)
    for tensor in moved.tensors:
        before = old.model.get_parameter(old.names[tensor.name].parameter).double()
        after = new.model.get_parameter(new.names[tensor.name].parameter).double()
        update = delta.updates[tensor.name]
        first, second = update.adapted(before) - before, update.adapted(after) - after
        if float(before.norm()) == 0.0:
            continue
        assert tensor.base_change == pytest.approx(float((after - before).norm() / before.norm()))
        assert tensor.base_change == pytest.approx(0.1, rel=1e-3)
        assert tensor.size == pytest.approx(float(first.norm() / before.norm()))
        if kind in ("sparse", "dense", "low_rank"):
            assert tensor.difference_change < 1e-6
        elif float(first.norm()) > 0:
            wanted = float((second - first).norm() / first.norm())
            assert tensor.difference_change == pytest.approx(wanted)
    assert moved.base_change == pytest.approx(0.1, rel=1e-3)
    inputs = case.batch(2).inputs
    with torch.no_grad():
        assert torch.isfinite(case.call(found, inputs)).all()
    with pytest.raises(FingerprintError):
        view(old, again)


def test_a_base_that_has_not_moved_changes_nothing():
    case, old, _ = versions("lstm", 0.1)
    delta = trained_delta(case, old, "sparse")
    moved = rebase(delta, old, load(copy.deepcopy(old.model)))
    assert (moved.base_change, moved.crossed) == (0.0, 0.0)
    assert moved.delta.fingerprint == delta.fingerprint
    assert moved.to_json()["tensors"][0]["base_change"] == 0.0


def test_what_is_no_new_version_is_an_error():
    case, old, new = versions("attention", 0.1)
    delta = trained_delta(case, old, "dense")
    with pytest.raises(FingerprintError):
        rebase(delta, new, old)
    small = load(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UnknownNameError):
        rebase(delta, old, small)
    other = copy.deepcopy(old.model)
    other.out = nn.Linear(16, 5)
    with pytest.raises(DeltaError, match=r"'out\.\w+' is .* in the old base and .* in the new one"):
        rebase(delta, old, load(other))
    processed = dataclasses.replace(new, tokenizer=None, pooling="cls")
    if processed.processing != old.processing:
        bound = dataclasses.replace(
            delta,
            fingerprint=dataclasses.replace(delta.fingerprint, processing={"pooling": "mean"}),
        )
        with pytest.raises(FingerprintError, match="another processing"):
            rebase(bound, dataclasses.replace(old, pooling="mean"), processed)
