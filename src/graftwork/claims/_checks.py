"""Instruments that claims share: what was kept, what moved, whether files and gates are exact."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork.bases import Base
from graftwork.claims._images import Transfer, logits_of
from graftwork.deltas import Delta, apply, build_ports, load, save
from graftwork.tasks import Predictor, Task
from graftwork.training import Adaptation, TrainConfig, finish, fit, start
from graftwork.tuning import HardConcrete, Tuner


def learn(
    transfer: Transfer, task: Task, tuner: Tuner, steps: int
) -> tuple[Adaptation, Delta, float]:
    """Return the trained adaptation, its delta as stored, and the accuracy of that in percent."""
    adaptation = start(transfer.base, task, tuner, seed=transfer.seed)
    fit(adaptation, task, TrainConfig(steps=steps))
    delta, metrics = finish(adaptation, task)
    return adaptation, delta, 100 * metrics["accuracy"]


def kept_in(delta: Delta) -> int:
    """Return how many entries the sparse terms of a delta hold."""
    found = (update.sparse for update in delta.updates.values())
    return sum(sparse.positions.numel() for sparse in found if sparse is not None)


def moved_elsewhere(base: Base, adaptation: Adaptation, delta: Delta) -> int:
    """Return how many trained entries differ from the base outside the delta's positions."""
    count = 0
    for name, piece in base.names.pieces.items():
        pair = (base.model, adaptation.attachment.module)
        before, after = (piece.of(m.get_parameter(piece.parameter)).flatten() for m in pair)
        moved = before != after
        sparse = delta.updates[name].sparse if name in delta.updates else None
        if sparse is not None:
            moved[sparse.positions.to(moved.device)] = False
        count += int(moved.sum())
    return count


def digest(base: Base) -> str:
    """Return the SHA-256 of all parameters of a base, in their order."""
    whole = hashlib.sha256()
    for parameter in base.model.parameters():
        whole.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def gate_deviation(seed: int, draws: int = 200_000) -> float:
    """Return the worst distance of sampled gates from their closed forms.

    With s = sigmoid(log u - log(1 - u) + alpha) and P(s <= y) = sigmoid(logit y - alpha), the mean
    of z = clamp(3 s - 1.5, 0, 1) is 3 times the integral of 1 - P(s <= y) from 1/2 to 5/6. With
    c = 1 - exp(-alpha) that integrand is (1 - y) / (1 - c y).
    """
    gate = HardConcrete()
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for alpha in (-4.0, -1.0, 0.5, 2.0, 5.0):
        u = torch.rand(draws, generator=generator)
        z = gate.sample(torch.full((draws,), alpha), u).double()
        c = 1 - math.exp(-alpha)
        low, high = (y / c - (1 - 1 / c) * math.log1p(-c * y) / c for y in (1 / 2, 5 / 6))
        pairs = (
            (float(z.mean()), 3 * (high - low)),
            (float((z > 0).double().mean()), 1 / (1 + math.exp(-alpha))),
            (float((z == 1).double().mean()), 1 / (1 + 5 * math.exp(-alpha))),
        )
        worst = max(worst, *(abs(found - expected) for found, expected in pairs))
    return worst


def reload_difference(base: Base, task: Task, delta: Delta, path: Path) -> tuple[int, float]:
    """Return the bytes of the file, and the largest change of a logit by saving and loading."""
    size = save(delta, path)
    kept, loaded = (logits_of(Predictor(base, d), task) for d in (delta, load(path)))
    return size, float((kept - loaded).abs().max())


def in_place(base: Base, task: Task, delta: Delta) -> Tensor:
    """Return the logits of a delta that is applied to the base itself and detached again."""
    device = next(base.model.parameters()).device
    ports = build_ports(delta).to(device).eval()

    signature = task.signature
    assert signature is not None

    def call(batch: Any) -> Tensor:
        return signature.call_model(base.model, ports, batch.to(device).inputs)

    applied = apply(base, delta)
    try:
        return logits_of(call, task)
    finally:
        applied.detach()
