"""Trained deltas of every kind over the battery: cut from an ordinary fine-tuning run.

    base = load(case.build())
    delta = trained_delta(case, base, "sparse")     # fine-tunes a copy, keeps its largest changes

so that nothing is ever tested on zeros. Heads are trained too, over the case's own logits.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork.bases import Base
from graftwork.deltas import (
    Delta,
    Fingerprint,
    LowRank,
    Port,
    Sparse,
    Update,
    port_of,
    quantise,
)
from graftwork.nn import Head
from tests.battery.models import CASES, Case, train_full


def _sparse(before: Tensor, after: Tensor) -> Update:
    change = (after - before).reshape(-1)
    count = max(1, change.numel() // 10)
    positions = change.abs().topk(count).indices.sort().values
    values = quantise(change[positions], "float16")
    return Update(tuple(before.shape), sparse=Sparse(positions, values))


def _dense(before: Tensor, after: Tensor) -> Update:
    return Update(tuple(before.shape), dense=quantise(after - before, "int8"))


def _low_rank(before: Tensor, after: Tensor) -> Update:
    if before.dim() < 2:
        return _dense(before, after)
    change = (after - before).reshape(before.shape[0], -1)
    left, sizes, right = torch.linalg.svd(change, full_matrices=False)
    term = LowRank(
        quantise(left[:, :2] * sizes[:2], "float16"), quantise(2 * right[:2], "bfloat16"), 0.5
    )
    return Update(tuple(before.shape), low_rank=term)


def _scale(before: Tensor, after: Tensor) -> Update:
    """Return the factor a row that best explains the change (least squares)."""
    flat, tuned = before.reshape(before.shape[0], -1), after.reshape(before.shape[0], -1)
    factor = (flat * tuned).sum(1) / (flat * flat).sum(1).clamp(min=1e-12)
    factor = torch.where(flat.abs().sum(1) > 0, factor, 1.0)
    shape = (before.shape[0],) + (1,) * (before.dim() - 1)
    return Update(tuple(before.shape), scale=quantise(factor.reshape(shape), "float32"))


def _mixed(before: Tensor, after: Tensor) -> Update:
    parts = [make(before, after) for make in (_sparse, _low_rank, _dense, _scale)]
    return Update(
        tuple(before.shape),
        sparse=parts[0].sparse,
        low_rank=parts[1].low_rank,
        dense=parts[2].dense,
        scale=parts[3].scale,
    )


KINDS: dict[str, Callable[[Tensor, Tensor], Update]] = {
    "sparse": _sparse,
    "dense": _dense,
    "low_rank": _low_rank,
    "scale": _scale,
    "mixed": _mixed,
}


@functools.cache
def tuned_state(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Return the parameters of a battery model after full fine-tuning (loss down >= 30 %)."""
    case = CASES[name]
    module = case.build(seed=seed)
    before, after = train_full(case, module)
    assert after < 0.7 * before
    return {n: p.detach() for n, p in module.named_parameters()}


def trained_head(case: Case, base: Base, labels: int, seed: int = 0) -> Port:
    """Return a head port of `labels` outputs, trained for 60 steps over the base's logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(2, labels, hidden=5)
    optimiser = torch.optim.AdamW(head.parameters(), lr=3e-2)
    for step in range(60):
        batch = case.batch(32, seed=step, dtype=next(base.model.parameters()).dtype)
        optimiser.zero_grad()
        logits = head(case.call(base.model, batch.inputs).detach())
        F.cross_entropy(logits, batch.rows % labels).backward()
        optimiser.step()
    return port_of(head, "head", {"in_features": 2, "out_features": labels, "hidden": 5})


def trained_delta(
    case: Case, base: Base, kind: str, *, share: float = 1.0, labels: int = 0, seed: int = 0
) -> Delta:
    """Return a delta of one kind of term for `base`, a `load(case.build())`.

    Args:
        case: the battery case.
        base: its base, with the default build seed.
        kind: a key of `KINDS`.
        share: part of the parameters touched, from the first.
        labels: outputs of its head; 0 for none.
        seed: another seed gives other changes.
    """
    tuned = tuned_state(case.name)
    updates = {}
    generator = torch.Generator().manual_seed(seed)
    names = list(base.names.pieces)
    for name in names[: max(1, round(share * len(names)))]:
        piece = base.names.pieces[name]
        before = piece.of(base.model.get_parameter(piece.parameter)).detach().float()
        after = tuned[piece.parameter].float()
        if seed:
            after = after + 0.05 * torch.randn(after.shape, generator=generator)
        updates[name] = KINDS[kind](before, after)
    return Delta(
        updates,
        ports={"head": trained_head(case, base, labels, seed)} if labels else {},
        fingerprint=Fingerprint(base.prints(updates), dict(base.processing)),
    )


def merged(base: Base, delta: Delta) -> nn.Module:
    """Return the oracle: a deep copy of the base's module with adapted values written in.

    Independent of `view` and `apply`: each term is computed here, in the open.
    """
    module = copy.deepcopy(base.model)
    for name, update in delta.updates.items():
        piece = base.names[name]
        with torch.no_grad():
            target = piece.of(module.get_parameter(piece.parameter))
            target.copy_(oracle(update, target))
    return module


def oracle(update: Update, weight: Tensor) -> Tensor:
    """Return W' in float64, from the equation `scale * (W + sparse + low_rank + dense)`."""
    out = weight.double().clone()
    if update.sparse is not None:
        added = torch.zeros(out.numel(), dtype=torch.float64)
        for position, value in zip(
            update.sparse.positions.tolist(), _numbers(update.sparse.values).tolist(), strict=True
        ):
            added[position] += value
        out = out + added.reshape(out.shape)
    if update.low_rank is not None:
        product = torch.einsum(
            "ir,rj->ij", _numbers(update.low_rank.left), _numbers(update.low_rank.right)
        )
        out = out + update.low_rank.factor * product.reshape(out.shape)
    if update.dense is not None:
        out = out + _numbers(update.dense)
    if update.scale is not None:
        out = out * _numbers(update.scale)
    return out


def _numbers(stored) -> Tensor:
    if isinstance(stored, Tensor):
        return stored.double()
    scales = stored.scales.double().repeat_interleave(256)[: stored.codes.numel()]
    return (stored.codes.double() * scales).reshape(stored.shape)
